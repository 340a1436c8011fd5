r"""Every pruning learner on one network: uniform or searched ratios, with and without a teacher.

A row names a learner, what may be left (of the MACs for channel learners, of the weights for
sparsification), who chose the ratios and whether the original network teaches. Plans are chosen on
validation images; the fine-tuning keeps its best epoch on them, too; the test set is touched once,
by the finished network. Rows are appended to a file as they come; a row that is there is not made
again, and a plan found for one row serves the others that differ in their training only.

    python -m amc_compress.benchmarks.learners.pruning_learners --out runs/pruning-digits.jsonl
    python -m amc_compress.benchmarks.learners.pruning_learners \
        --model resnet20 --data DIR --weights FILE \
        --validation-split tail --round-to 4 --epochs 1 --learner remastered --left 0.5 \
        --way searched --teacher original --seed 0 --out runs/pruning.jsonl
    python -m amc_compress.benchmarks.learners.pruning_learners --out runs/pruning.jsonl --table
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from torch import nn

from amc_compress.agents import AGENTS, make_agent
from amc_compress.benchmarks.bench import append_rows, find, load, read_rows, start, table
from amc_compress.data import DataSplits
from amc_compress.learners import (
    ChannelPruning,
    DiscriminationAwarePruning,
    GroupLassoPruning,
    Learner,
    RemasteredPruning,
)
from amc_compress.learners.joint.deep import compress_deeply, deep_compression
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.packing.packed_file import save_packed
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate
from amc_compress.tasks import SplitKind
from amc_env import Budget, CompressionEnv, CompressionPlan

WAYS = ("uniform", "searched")
RULES = ("heuristic", "global")  # of sparse learners
TEACHERS = ("none", "original")
_TRAINING = ("teacher", "epochs", "learning_rate")
N_EVALUATION = 2000  # validation images per evaluation; the best five plans see all

NAMES = ("model", "learner", "left", "way", "teacher", "epochs", "learning_rate")
"""What makes rows of one kind."""
COLUMNS = ("macs", "left_weights", "bytes", "before", "validation", "test",
           "prepare_cpu_seconds", "search_cpu_seconds", "finetune_cpu_seconds")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """What names a row.

    Args:
        model: The network.
        data: Its images.
        weights: The file of its trained weights.
        round_to: Kept channels are multiples of this; 0 where none are cut.
        learner: Name in :data:`LEARNERS`.
        left: Share of the MACs (of the weights, for ``sparse``; of the bytes, for ``deep``) that
            may stay.
        way: ``"uniform"``, ``"searched"``; for ``sparse`` also ``"heuristic"`` and ``"global"``.
        teacher: ``"original"`` or ``"none"``.
        seed: Seeds calibration, search and training.
        epochs: Of fine-tuning; ``deep`` trains as many behind the masks, and as many centroids.
        learning_rate: Its peak.
        agent: Who searches.
        episodes: How many plans it evaluates; both are ignored where nothing is searched.
    """

    model: str
    data: str
    weights: str
    round_to: int
    learner: str
    left: float
    way: str
    teacher: str
    seed: int
    epochs: int
    learning_rate: float
    agent: str = ""
    episodes: int = 0


LEARNERS: dict[str, Callable[..., Learner]] = {
    "channels l1": partial(ChannelPruning, criterion="l1"),
    "channels lasso": partial(ChannelPruning, criterion="lasso"),
    "group-lasso": GroupLassoPruning,
    "remastered": RemasteredPruning,
    "discrimination": DiscriminationAwarePruning,
    # Masks are renewed often, so that a training of one epoch has a ramp.
    "sparse gradual": partial(WeightSparsification, schedule_frequency=20),
    "sparse one-shot": partial(WeightSparsification, schedule="one-shot"),
    "sparse 2:4": partial(WeightSparsification, schedule="one-shot", pattern="2:4"),
    "sparse block4": partial(WeightSparsification, schedule="one-shot", pattern="block4"),
    "deep": partial(deep_compression, schedule="one-shot"),
}
"""Name -> maker; those of sparsification begin with ``sparse``."""


def budgeted(learner: str) -> str:
    """Returns the cost that a row's ``left`` is a share of."""
    return {"sparse": "density", "deep": "bytes"}.get(learner.split()[0], "macs")


def prepare(
    name: str, network: nn.Module, splits: DataSplits, seed: int, round_to: int
) -> tuple[Learner, float]:
    """Prepares a learner; returns it with the CPU-seconds that took."""
    started = time.process_time()
    options: dict[str, Any] = {"round_to": round_to} if budgeted(name) == "macs" else {}
    learner = LEARNERS[name](
        network,
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        train=splits.train,
        n_validation=N_EVALUATION,
        seed=seed,
        **options,
    )
    return learner, time.process_time() - started


def choose(
    row: Row, learner: Learner, rows: Sequence[Mapping[str, Any]]
) -> tuple[CompressionPlan, float]:
    """Returns the plan of a row and the CPU-seconds that finding it took."""
    if (found := find(asdict(row), rows, but=_TRAINING)) is not None:
        return CompressionPlan(found["plan"]), found["search_cpu_seconds"]
    started = time.process_time()
    if row.way in RULES and isinstance(learner, WeightSparsification):
        plan = learner.plan_for(row.way, row.left)
    else:
        env = CompressionEnv(learner, Budget(**{budgeted(row.learner): row.left}))
        agent = make_agent(row.agent if row.way == "searched" else "uniform")
        plan = agent.search(env, max(row.episodes, 1), row.seed).plan
    return plan, time.process_time() - started


def measure(
    row: Row,
    learner: Learner,
    splits: DataSplits,
    original: nn.Module,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Makes a row: choose, compress, fine-tune, and the test set at the end."""
    plan, search_seconds = choose(row, learner, rows)
    env = CompressionEnv(learner, Budget(macs=1.0))
    network = learner.compress(plan)
    before = evaluate(network, splits.validation)
    started = time.process_time()
    network, validation = trained(row, learner, plan, network, splits, original)
    seconds = time.process_time() - started
    weights = sum(p.numel() for p in network.parameters() if p.ndim > 1)
    hidden = sum(
        int((~layer.weight_mask).sum())
        for layer in masked_layers(network).values()
        if layer.weight_mask is not None
    )
    with tempfile.TemporaryDirectory() as folder:
        size = save_packed(network, Path(folder) / "network.packed", plan=plan)
    return {
        **asdict(row),
        "macs": env.cost_ratio(plan)["macs"],
        "left_weights": (weights - hidden)
        / sum(p.numel() for p in original.parameters() if p.ndim > 1),
        "bytes": size,
        "before": before,
        "validation": validation,
        "test": evaluate(network, splits.test, precision="fp32"),
        "search_cpu_seconds": round(search_seconds, 1),
        "finetune_cpu_seconds": round(seconds, 1),
        "plan": dict(plan),
    }


def trained(
    row: Row,
    learner: Learner,
    plan: CompressionPlan,
    network: nn.Module,
    splits: DataSplits,
    original: nn.Module,
) -> tuple[nn.Module, float]:
    """Returns the finished network of a row and its accuracy on the validation images.

    ``network`` is that of the plan; Deep Compression begins anew, as it trains before it quantizes.
    """
    config = TrainingConfig(epochs=row.epochs, learning_rate=row.learning_rate, seed=row.seed)
    teacher = original if row.teacher == "original" else None
    if not isinstance(learner, JointCompression):
        result = learner.finetune(network, splits.train, config=config, teacher=teacher)
        return network, result.best_score
    own = replace(learner.training_defaults(), epochs=row.epochs, seed=row.seed)
    done = compress_deeply(
        learner, plan, splits.train, retraining=config, finetuning=own, teacher=teacher
    )
    return done.network, done.stages[-1].score


def check(
    learners: Sequence[str], ways: Sequence[str], teachers: Sequence[str], agent: str
) -> None:
    """Rejects unknown names before anything is prepared.

    Raises:
        BadParameter: With what is known.
    """
    only_sparse = all(name.startswith("sparse") for name in learners)
    for option, given, known in (
        ("--learner", learners, tuple(LEARNERS)),
        ("--way", ways, (*WAYS, *RULES) if only_sparse else WAYS),
        ("--teacher", teachers, TEACHERS),
        ("--agent", [agent], tuple(AGENTS)),
    ):
        for name in given:
            if name not in known:
                raise typer.BadParameter(f"{option} {name}: expected one of {', '.join(known)}.")


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line each.")],
    model: str = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    learner: Annotated[list[str], typer.Option(help=", ".join(LEARNERS))] = ["channels l1"],  # noqa: B006
    left: Annotated[list[float], typer.Option(help="Share that may stay.")] = [0.5],  # noqa: B006
    way: Annotated[
        list[str], typer.Option(help="uniform, searched; sparse: heuristic, global.")
    ] = ["uniform", "searched"],  # noqa: B006
    teacher: Annotated[list[str], typer.Option(help="original, none.")] = ["none", "original"],  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Repeat for more.")] = [0],  # noqa: B006
    epochs: Annotated[int, typer.Option(help="Of fine-tuning.")] = 1,
    learning_rate: float = 0.02,
    agent: Annotated[str, typer.Option(help="Who searches.")] = "local",
    episodes: int = 60,
    round_to: Annotated[int, typer.Option(help="Kept channels: multiples of this.")] = 4,
    validation_split: SplitKind = "random",
    only_table: Annotated[bool, typer.Option("--table", help="Only print the rows.")] = False,
) -> None:
    """Prints a table of pruning learners."""
    check(learner, way, teacher, agent)
    for number in [] if only_table else seed:
        todo = [
            Row(model, data, str(weights or ""), round_to if budgeted(name) == "macs" else 0,
                name, share, how, taught, number, epochs, learning_rate,
                *((agent, episodes) if how == "searched" else ()))
            for name in learner for share in left for how in way for taught in teacher
        ]  # fmt: skip
        known = read_rows(out)
        todo = [row for row in todo if find(asdict(row), known) is None]
        if not todo:
            continue
        network, splits = load(model, data, weights, validation_split=validation_split, seed=number)
        for name in dict.fromkeys(row.learner for row in todo):
            prepared, seconds = prepare(name, network, splits, number, round_to)
            for row in (row for row in todo if row.learner == name):
                made = measure(row, prepared, splits, network, read_rows(out))
                made["prepare_cpu_seconds"] = round(seconds, 1)
                append_rows(out, [made])
                print(row, made["before"], made["validation"], made["test"], flush=True)
    print(table(read_rows(out), NAMES, COLUMNS, lambda k: (k[1], -k[2], *k[3:])))


if __name__ == "__main__":
    start(main)
