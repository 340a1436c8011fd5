r"""Rank correlation of sensitivity curves with proxy accuracy (Spearman's rho).

Random feasible plans are evaluated once. A curve of every decision (decision key -> a number for
every choice) predicts a plan's accuracy by the negative sum of what it gives to the plan's choices:

    layer errors      ``layer_errors()``: squared error over squared output of the layers concerned
    gradient scores   ``gradient_scores()``, equation (1) of ``gradient_scores``
    squared gates     of channels, Molchanov et al. 2019, equation 8, summed over the cut units:
                      ``E[(dL/dz)^2]`` over batches of 64; times 64 / 2, which makes it the second
                      order rise if the gradients of images are independent (Theis et al. 2018)
    weights' Fisher   ``1/2 sum_i F_i (w_i - w'_i)^2``, equation (2) there, without any repair: of
                      the weights that read the cut units, are set to zero, or are rounded

A joint plan sums over its parts; "squared gates" then has the weights' Fisher of bits next to it.

    python -m amc_compress.benchmarks.learners.score_ranking --kind channels --out runs/scores.jsonl
    python -m amc_compress.benchmarks.learners.score_ranking \
        --kind channels --model resnet20 --data DIR \
        --weights FILE --budget macs=0.5 --round-to 4 --n-validation 1000 \
        --validation-split tail --out runs/scores-resnet20.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer
from scipy.stats import spearmanr
from tqdm import tqdm

from amc_compress.benchmarks.bench import KeptRows, start
from amc_compress.benchmarks.learners.proxy_ranking import random_plans
from amc_compress.learners import ChannelPruning, JointCompression
from amc_compress.learners.candidates.gradient_scores import falling, weight_fisher
from amc_compress.learners.channel_pruning.criteria import taylor
from amc_compress.learners.channel_pruning.curves import Repair
from amc_compress.learners.channel_pruning.curves import gradient_scores as channel_scores
from amc_compress.learners.channel_pruning.ranking import group_contexts
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.sparsification.curves import gradient_scores as density_scores
from amc_compress.learners.tasks.inputs import joined, pieces
from amc_compress.tasks import SplitKind, make_bits, make_channels, make_density, make_joint
from amc_env import CompressionEnv, CompressionPlan
from amc_env.validation.checks import check_known

Curves = Mapping[str, npt.NDArray[np.float64]]

BUDGETS = {
    "channels": "macs=0.3",
    "bits": "mean_bits=4/32",
    "density": "density=0.25",
    "joint": "macs=0.5,bytes=0.15",
}
"""Kind of task -> budget of the digits task."""

_GATE_BATCH = 64


def squared_gates(learner: ChannelPruning) -> Curves:
    """Returns the summed Taylor importance of the units that every choice cuts."""
    batches = pieces(joined(learner.data.labelled()), _GATE_BATCH)
    found = {}
    contexts = group_contexts(learner.traced, learner.original, {}, batches, learner.seed)
    scores = {context.name: taylor(context) for context in contexts}
    for d in learner.decisions:
        of_units = scores[d.target]
        kept = [of_units[learner.select(d.target, d.units(c))].sum() for c in d.choices]
        cut = np.array([float(of_units.sum() - k) for k in kept])
        found[d.key] = falling(0.5 * _GATE_BATCH * cut)
    return found


def weights_fisher(part: Any) -> Curves:
    """Returns equation (2) for the weights that every choice of a part takes or rounds."""
    if isinstance(part, ChannelPruning):
        repair = Repair({}, part.proxy, ())
        batches = part.data.labelled()
        return channel_scores(part.decisions, part.traced, repair, part.select, batches, part.task)
    if isinstance(part, WeightSparsification):
        batches = part.data.labelled()
        return density_scores(
            part.decisions, part.original, {}, part.fitted, batches, part.task, lambda name: False
        )
    return _of_rounded(part)


def _of_rounded(learner: QuantizationLearner) -> Curves:
    network = learner.float_network
    quantizers = learner.fitted.of_choices(learner.decisions)
    names = {d.key: f"{d.target}.weight" for d in learner.decisions}
    fisher = weight_fisher(network, learner.data.labelled(), set(names.values()))
    found = {}
    for d in learner.decisions:
        weight, curve = network.get_parameter(names[d.key]).detach(), np.zeros(len(d.choices))
        for index, quantizer in enumerate(quantizers[d.key]):
            if quantizer is not None:
                lost = (weight - quantizer(weight).detach()).double().square()
                curve[index] = 0.5 * float((fisher[names[d.key]] * lost).sum())
        found[d.key] = falling(curve)
    return found


def predictors(learner: Any) -> dict[str, Callable[[], Curves]]:
    """Returns name of the curves -> what computes them."""
    found: dict[str, Callable[[], Curves]] = {
        "layer errors": learner.layer_errors,
        "gradient scores": learner.gradient_scores,
    }
    parts = learner.parts if isinstance(learner, JointCompression) else [learner]

    def merged(of_channels: Callable[[Any], Curves]) -> Curves:
        curves: dict[str, npt.NDArray[np.float64]] = {}
        for part in parts:
            of_part = of_channels if isinstance(part, ChannelPruning) else weights_fisher
            curves |= of_part(part)
        return curves

    if any(isinstance(part, ChannelPruning) for part in parts):
        found["squared gates"] = lambda: merged(squared_gates)
    found["weights' Fisher"] = lambda: merged(weights_fisher)
    return found


def predicted(env: CompressionEnv, curves: Curves, plan: CompressionPlan) -> float:
    """Returns the sum of what the curves give to the choices of a plan."""
    return sum(float(curves[d.key][d.choices.index(d.nearest(plan[d.key]))]) for d in env.decisions)


def make_task(
    kind: str, budget: str, round_to: int, quantizer: str, **options: Any
) -> CompressionEnv:
    """Builds the task of a kind.

    Raises:
        ValueError: If there is no such kind.
    """
    check_known("kind", kind, sorted(BUDGETS))
    options["budget"] = budget or BUDGETS[kind]
    if kind == "channels":
        return make_channels(round_to=round_to, **options)
    if kind == "bits":
        return make_bits(quantizer=quantizer, **options)
    if kind == "density":
        return make_density(**options)
    return make_joint(round_to=round_to, quantizer=quantizer, **options)


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line per plan.")],
    kind: Annotated[str, typer.Option(help="channels, bits, density or joint.")] = "channels",
    model: str = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    budget: Annotated[str, typer.Option(help="That of the digits task if not given.")] = "",
    quantizer: str = "uniform",
    plans: Annotated[int, typer.Option(help="Number of random plans.")] = 40,
    round_to: int = 2,
    n_validation: int = 3000,
    validation_split: SplitKind = "random",
    precision: str = "auto",
    seed: int = 0,
) -> None:
    """Prints Spearman's rho of the curves' predictions against the proxy accuracy."""
    env = make_task(
        kind, budget, round_to, quantizer, model=model, data=data,
        weights=str(weights) if weights else None, n_validation=n_validation,
        validation_split=validation_split, precision=precision, seed=seed,
    )  # fmt: skip
    settings = {
        "kind": kind, "model": model, "data": data, "weights": str(weights or ""),
        "budget": str(env.budget), "quantizer": quantizer, "round_to": round_to,
        "n_validation": n_validation, "validation_split": validation_split,
        "precision": precision, "seed": seed,
    }  # fmt: skip
    kept = KeptRows(out, settings)
    for plan in tqdm(random_plans(env, plans, seed)[len(kept.rows) :], desc="plans"):
        kept.add([{"plan": dict(plan), "accuracy": env.learner.evaluate(plan)}])
    rows = kept.rows
    accuracies = [row["accuracy"] for row in rows]
    print(f"{len(rows)} plans, accuracy {min(accuracies):.4f} to {max(accuracies):.4f}")
    print("| curves | rho | CPU-s |\n|---|---|---|")
    for name, compute in predictors(env.learner).items():
        start = time.process_time()
        found = compute()
        seconds = time.process_time() - start
        sums = [predicted(env, found, CompressionPlan(row["plan"])) for row in rows]
        print(f"| {name} | {-spearmanr(sums, accuracies).statistic:.2f} | {seconds:.1f} |")


if __name__ == "__main__":
    start(main)
