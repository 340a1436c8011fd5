r"""Benchmark of searched against uniform bit-widths at equal bytes.

For every number of bits k: the network with k-bit weights in all layers but the first and the last
(8 bits, as is usual), and a search over all layers whose budget is that network's bytes. Plans are
chosen on validation images; ``--epochs`` then trains the chosen network (quantization-aware), and
the test set is touched once, by the final network. Rows are appended to a file as they come; a row
that is there is not made again.

    python -m amc_compress.benchmarks.learners.fixed_or_searched --out runs/bits-digits.jsonl \
        --bits 3
    python -m amc_compress.benchmarks.learners.fixed_or_searched \
        --model resnet20 --data DIR --weights FILE \
        --validation-split tail --quantizer codebook --bits 2 --way searched --seed 0 \
        --out runs/bits.jsonl
    python -m amc_compress.benchmarks.learners.fixed_or_searched --out runs/bits.jsonl --table
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import typer

from amc_compress.agents import make_agent
from amc_compress.benchmarks.bench import append_rows, find, load, read_rows, start, table
from amc_compress.data import DataSplits
from amc_compress.learners.joint.options import quantizer_named
from amc_compress.learners.packing.packed_file import save_packed
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.training.loop import evaluate
from amc_compress.tasks import SplitKind
from amc_env import Budget, CompressionEnv, CompressionPlan, DecisionKind

WAYS = ("fixed", "searched")
ENDS_BITS = 8.0
N_EVALUATION = 2000  # validation images per evaluation; the best five plans see all

NAMES = ("model", "quantizer", "bits", "activations", "way", "agent", "episodes", "epochs")
"""What makes rows of one kind."""
COLUMNS = ("validation", "trained validation", "test", "mean_bits", "bytes")


@dataclass(frozen=True)
class Row:
    """What names a row.

    Args:
        model: The network.
        quantizer: ``"uniform"`` or ``"codebook"``.
        bits: Weight bits everywhere, or whose bytes the search may spend.
        activations: Activation bits of all layers; 16 is off.
        way: ``"fixed"`` or ``"searched"``.
        seed: Seeds search, calibration and training.
        epochs: Of quantization-aware training; 0 for none.
        agent: Who searches.
        episodes: How many plans it evaluates; both are ignored by fixed rows.
    """

    model: str
    quantizer: str
    bits: int
    activations: int
    way: str
    seed: int
    epochs: int
    agent: str = ""
    episodes: int = 0


def prepare(row: Row, network: Any, splits: DataSplits) -> QuantizationLearner:
    """Prepares the quantizer of a row."""
    return quantizer_named(row.quantizer)(
        network,
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        activation_bits=row.activations,
        first_last_bits=None,
        n_validation=N_EVALUATION,
        seed=row.seed,
    )


def fixed_plan(row: Row, learner: QuantizationLearner) -> CompressionPlan:
    """Returns the row's bits in every layer but the first and the last, which get 8."""
    values = dict(learner.fixed_plan(row.bits))
    weights = [d.key for d in learner.decisions if d.kind is DecisionKind.WEIGHT_BITS]
    return CompressionPlan(values | {weights[0]: ENDS_BITS, weights[-1]: ENDS_BITS})


def choose(
    row: Row, learner: QuantizationLearner, rows: Sequence[Mapping[str, Any]]
) -> CompressionPlan:
    """Returns the plan of a row: fixed, or found within the fixed one's bytes.

    Training does not change what a search would find, so the plan of the untrained row is taken
    where there is one.
    """
    fixed = fixed_plan(row, learner)
    if row.way == "fixed":
        return fixed
    if (found := find(asdict(replace(row, epochs=0)), rows)) is not None:
        return CompressionPlan(found["plan"])
    cost = learner.cost_models["bytes"]
    share = cost(fixed.values_for(learner.decisions)) / cost.original(learner.decisions)
    env = CompressionEnv(learner, Budget(bytes=share))
    return make_agent(row.agent).search(env, row.episodes, row.seed).plan


def measure(
    row: Row,
    learner: QuantizationLearner,
    splits: DataSplits,
    rows: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """Makes a row: choose, quantize, train if wanted, pack, and the test set at the end."""
    started = time.process_time()
    plan = choose(row, learner, rows)
    search_seconds = time.process_time() - started
    network = learner.compress(plan)
    result: dict[str, Any] = {"validation": learner.evaluate_full(plan)}
    if row.epochs:
        learner.finetune(network, splits.train, epochs=row.epochs)
        result["trained validation"] = evaluate(network, splits.validation, precision="fp32")
    with tempfile.TemporaryDirectory() as folder:
        save_packed(network, Path(folder) / "network.packed", plan=plan)
        size = (Path(folder) / "network.packed").stat().st_size
    return {
        **asdict(row),
        **result,
        "test": evaluate(network, splits.test, precision="fp32"),
        "original": learner.original_score,
        "mean_bits": learner.cost_models["mean_bits"](plan.values_for(learner.decisions)),
        "bytes": size,
        "search_cpu_seconds": round(search_seconds, 1),
        "cpu_seconds": round(time.process_time() - started, 1),
        "plan": dict(plan),
    }


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line each.")],
    model: str = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    quantizer: Annotated[list[str], typer.Option(help="uniform, codebook.")] = ["uniform"],  # noqa: B006
    bits: Annotated[list[int], typer.Option(help="Weight bits; repeat for more.")] = [4],  # noqa: B006
    way: Annotated[list[str], typer.Option(help="fixed, searched.")] = list(WAYS),  # noqa: B006
    seed: Annotated[list[int], typer.Option(help="Repeat for more.")] = [0],  # noqa: B006
    activations: Annotated[int, typer.Option(help="Activation bits; 16 is off.")] = 16,
    agent: Annotated[str, typer.Option(help="Who searches.")] = "local",
    episodes: int = 100,
    epochs: Annotated[int, typer.Option(help="Quantization-aware training; 0: none.")] = 0,
    validation_split: SplitKind = "random",
    only_table: Annotated[bool, typer.Option("--table", help="Only print the rows.")] = False,
) -> None:
    """Prints a table of fixed against searched bit-widths at equal bytes."""
    todo = [
        Row(model, q, k, activations, w, s, epochs, *((agent, episodes) if w != "fixed" else ()))
        for s in seed
        for k in bits
        for q in quantizer
        for w in way
    ]
    known = read_rows(out)
    todo = [] if only_table else [row for row in todo if find(asdict(row), known) is None]
    if todo:
        network, splits = load(model, data, weights, validation_split=validation_split)
    for row in todo:
        made = measure(row, prepare(row, network, splits), splits, read_rows(out))
        append_rows(out, [made])
        print(row, made["validation"], made["test"], flush=True)
    print(table(read_rows(out), NAMES, COLUMNS))


if __name__ == "__main__":
    start(main)
