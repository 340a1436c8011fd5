"""Cost of one episode: CPU-seconds by part, one thread, from trained weights.

A plan that spends the budget as uniformly as the grid allows is evaluated again and again; every
episode slices, repairs, recalibrates and evaluates from scratch, nothing is cached. CPU-seconds of
a single thread hardly depend on what else the machine does; medians are printed.

    python -m amc_compress.benchmarks.speed.episode --model digitsnet --data digits \
        --budget macs=0.5
    python -m amc_compress.benchmarks.speed.episode --model resnet20 --data DIR --weights FILE
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Annotated

import torch
import typer

from amc_compress.benchmarks.bench import start
from amc_compress.data import load_data
from amc_compress.learners import ChannelPruning
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.numerics.kernel_proof import Proofs, proofs
from amc_compress.models import load_weights, make_model
from amc_env import CompressionEnv

PARTS = ("slicing", "reconstruction", "finetuning", "recalibration", "evaluation", "total")


def measure(learner: ChannelPruning, budget: str, episodes: int) -> list[dict[str, float]]:
    """Evaluates the uniform plan again and again.

    Args:
        learner: Prepared.
        budget: For the plan.
        episodes: How often; one more runs first, unmeasured.

    Returns:
        CPU-seconds by part for each episode.
    """
    plan = CompressionEnv(learner, budget).uniform_plan()
    learner.evaluate(plan)
    rows = []
    for _ in range(episodes):
        learner.seconds = CandidateSeconds()
        start = time.process_time()
        learner.evaluate(plan)
        rows.append({**learner.seconds.mean(), "total": time.process_time() - start})
    return rows


def _of_proofs(found: Proofs, preparation: float) -> str:
    return (
        f"{found.tried} kernels proved in {found.seconds:.2f} "
        f"({found.seconds / preparation:.1%} of the preparation), {found.failed} of them wrong"
    )


def main(
    model: Annotated[str, typer.Option(help="Name in the zoo or package.module:factory.")] = (
        "resnet20"
    ),
    data: Annotated[str, typer.Option(help="digits, or a parquet folder.")] = "digits",
    weights: Annotated[Path | None, typer.Option(help="safetensors or state_dict.")] = None,
    budget: Annotated[str, typer.Option(help="As for amc search.")] = "macs=0.5",
    episodes: Annotated[int, typer.Option(help="Measured episodes.")] = 7,
    images: Annotated[int, typer.Option(help="Validation images.")] = 3000,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "auto",
    proxy: Annotated[str, typer.Option(help="Repairs before evaluation.")] = (
        "reconstruction+recalibration"
    ),
) -> None:
    """Prints the CPU-seconds of an episode by part."""
    splits = load_data(data)
    network = make_model(model, n_classes=splits.n_classes, in_channels=splits.image_shape[0])
    if weights is not None:
        load_weights(network, weights)
    start = time.process_time()
    learner = ChannelPruning(
        network,
        torch.zeros(1, *splits.image_shape),
        splits.calibration,
        splits.validation,
        precision=precision,
        proxy=proxy,
        n_validation=images,
    )
    seconds = time.process_time() - start
    print(f"prepared in {seconds:.2f} CPU-seconds, {_of_proofs(proofs(), seconds)}")
    rows = measure(learner, budget, episodes)
    print(f"with the first episode, {_of_proofs(proofs(), seconds)}")
    for part in PARTS:
        values = [row[part] for row in rows]
        print(
            f"{part:15} {statistics.median(values):7.4f}  "
            f"(least {min(values):.4f}, most {max(values):.4f})"
        )


if __name__ == "__main__":
    start(main)
