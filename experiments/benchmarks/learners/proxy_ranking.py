r"""Rank correlation of each proxy with the accuracy after fine-tuning (Spearman's rho).

Random feasible plans are evaluated by every proxy and then really fine-tuned; both accuracies are
taken on the validation split, the test set is not touched. Rows are appended to a file as they
come, so an interrupted run continues where it stopped.

    python -m amc_compress.benchmarks.learners.proxy_ranking --out runs/proxies-digits.jsonl
    python -m amc_compress.benchmarks.learners.proxy_ranking \
        --model resnet20 --data DIR --weights FILE \
        --budget macs=0.5 --epochs 1 --steps 176 --round-to 8 \
        --validation-split tail --out runs/proxies-resnet20.jsonl
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

from amc_compress.benchmarks.bench import KeptRows, start
from amc_compress.data import TensorLoader, load_data
from amc_compress.learners import ChannelPruning
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.tasks import SplitKind, make_channels
from amc_env import CompressionEnv, CompressionPlan

PROXIES: tuple[tuple[str, int], ...] = (
    ("none", 0),
    ("recalibration", 0),
    ("reconstruction", 0),
    ("reconstruction+recalibration", 0),
    ("recalibration", 20),
    ("reconstruction+recalibration", 20),
)
"""Proxy name and number of fine-tuning steps."""

_N_BOOTSTRAP = 2000


class ShortEpochs:
    """A loader whose epochs end after ``n_batches``; shuffled anew in each of them.

    Args:
        loader: The loader it cuts short.
        n_batches: Batches per epoch.
    """

    def __init__(self, loader: TensorLoader, n_batches: int) -> None:
        self._loader = loader
        self._n_batches = min(n_batches, len(loader))

    def __len__(self) -> int:
        return self._n_batches

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return islice(iter(self._loader), self._n_batches)

    def set_epoch(self, epoch: int) -> None:
        """Tells the loader which order to draw."""
        self._loader.set_epoch(epoch)


def proxy_label(name: str, steps: int) -> str:
    """Returns how the table calls a proxy."""
    return f"{name} + {steps} steps" if steps else name


def random_plans(env: CompressionEnv, count: int, seed: int) -> list[CompressionPlan]:
    """Draws distinct feasible plans: uniform actions in the environment's action mapping."""
    rng = np.random.default_rng(seed)
    plans: dict[CompressionPlan, None] = {}
    for _ in range(100 * count):
        plans[env.decode(rng.random(env.n_decisions))] = None
        if len(plans) == count:
            break
    return list(plans)


def _evaluate(
    learners: dict[str, ChannelPruning], plan: CompressionPlan, config: TrainingConfig, train: Any
) -> dict[str, Any]:
    """One row: every proxy's accuracy and CPU-seconds, and the accuracy after fine-tuning."""
    row: dict[str, Any] = {"plan": dict(plan), "proxy": {}, "cpu_seconds": {}}
    for label, learner in learners.items():
        start = time.process_time()
        row["proxy"][label] = learner.evaluate(plan)
        row["cpu_seconds"][label] = time.process_time() - start
    learner = learners["reconstruction+recalibration"]  # starts where `amc compress` starts
    result = learner.finetune(learner.compress(plan), train, config=config)
    row["finetuned"] = result.history[-1].validation_score
    return row


def spearman_table(rows: list[dict[str, Any]], seed: int = 0) -> list[dict[str, Any]]:
    """Returns per proxy rho, its 95% bootstrap interval, and mean CPU-seconds."""
    rng = np.random.default_rng(seed)
    truth = np.array([row["finetuned"] for row in rows])
    table = []
    for label in rows[0]["proxy"]:
        guess = np.array([row["proxy"][label] for row in rows])
        resampled = []
        for _ in range(_N_BOOTSTRAP):
            index = rng.integers(0, len(rows), len(rows))
            if np.ptp(guess[index]) > 0 and np.ptp(truth[index]) > 0:
                resampled.append(spearmanr(guess[index], truth[index]).statistic)
        low, high = np.quantile(resampled, [0.025, 0.975]) if resampled else (np.nan, np.nan)
        table.append(
            {
                "proxy": label,
                "rho": float(spearmanr(guess, truth).statistic),
                "low": float(low),
                "high": float(high),
                "cpu_seconds": float(np.mean([row["cpu_seconds"][label] for row in rows])),
            }
        )
    return table


def main(
    out: Annotated[Path, typer.Option(help="Rows, one JSON line per plan.")],
    model: str = "digitsnet",
    data: str = "digits",
    weights: Annotated[Path | None, typer.Option(help="Trained weights.")] = None,
    budget: str = "macs=0.3",
    plans: Annotated[int, typer.Option(help="Number of random plans.")] = 30,
    epochs: Annotated[int, typer.Option(help="Epochs of the real fine-tuning.")] = 20,
    steps: Annotated[int | None, typer.Option(help="End every epoch after so many.")] = None,
    learning_rate: float = 0.02,
    round_to: int = 2,
    validation_split: SplitKind = "random",
    seed: int = 0,
) -> None:
    """Prints Spearman's rho of every proxy against accuracy after real fine-tuning."""
    environments: dict[str, CompressionEnv] = {
        proxy_label(name, steps): make_channels(
            budget, model=model, data=data, weights=str(weights) if weights else None,
            proxy=name, finetune_steps=steps, round_to=round_to,
            validation_split=validation_split, seed=seed,
        )
        for name, steps in PROXIES
    }  # fmt: skip
    learners: dict[str, Any] = {label: env.learner for label, env in environments.items()}
    train: Any = load_data(data, seed=seed, validation_split=validation_split).train
    if steps is not None:
        train = ShortEpochs(train, steps)
    config = TrainingConfig(epochs=epochs, learning_rate=learning_rate, seed=seed)
    settings = {
        "model": model, "data": data, "weights": str(weights or ""), "budget": budget,
        "epochs": epochs, "steps": steps, "learning_rate": learning_rate, "round_to": round_to,
        "validation_split": validation_split, "seed": seed,
    }  # fmt: skip
    kept = KeptRows(out, settings)
    first = next(iter(environments.values()))
    for plan in tqdm(random_plans(first, plans, seed)[len(kept.rows) :], desc="plans"):
        kept.add([_evaluate(learners, plan, config, train)])
    rows = kept.rows
    final = [row["finetuned"] for row in rows]
    print(
        f"{len(rows)} plans, {epochs} epochs of {len(train)} steps; "
        f"fine-tuned {min(final):.4f} to {max(final):.4f}"
    )
    print("| proxy | rho | 95% interval | CPU-s per plan |\n|---|---|---|---|")
    for line in spearman_table(rows):
        print(
            f"| {line['proxy']} | {line['rho']:.2f} | {line['low']:.2f} to {line['high']:.2f} "
            f"| {line['cpu_seconds']:.3f} |"
        )


if __name__ == "__main__":
    start(main)
