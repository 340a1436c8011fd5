"""Re-evaluates recorded plans in float32 and compares the accuracies.

A sample of every record, each record's plans at even distances, is evaluated by the network that
was recorded. A record made in another number format, or on a processor with a wrong kernel, shows.

    python -m amc_compress.benchmarks.agents.record_check digits-channels --plans 9501
    python -m amc_compress.benchmarks.agents.record_check resnet20-bits --data DIR \
        --weights resnet20=FILE
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
import typer

from amc_compress.benchmarks.bench import start
from amc_compress.comparison.tasks import Places, build_env, find_task, origin_of
from amc_env import CompressionPlan
from amc_env.recorded_tasks.recorded_file import RecordedTask, read_recorded


def differences(
    task: RecordedTask, places: Places, n_plans: int, precision: str
) -> npt.NDArray[np.float64]:
    """Evaluates recorded plans and returns, for each, the new accuracy minus the recorded one.

    Args:
        task: The record.
        places: Where the data and the weights that it was made of are.
        n_plans: How many of its plans, at even distances; all if it has no more.
        precision: ``"fp32"``, ``"bf16"`` or ``"auto"``.

    Raises:
        InputDataError: If data or weights are missing or not those of the record.
    """
    original = find_task(task.name)
    env = build_env(original, places, precision=precision)
    n = len(task.plans)
    chosen = np.unique(np.linspace(0, n - 1, min(n_plans, n)).round().astype(int))
    found = []
    for index in chosen:
        values = [d.choices[int(c)] for d, c in zip(task.decisions, task.plans[index], strict=True)]
        plan = CompressionPlan.from_values(env.decisions, values)
        found.append(env.evaluate(plan).score - float(task.scores[index]))
    return np.array(found)


def main(
    names: Annotated[list[str], typer.Argument(help="Records, as digits-channels.")],
    plans: Annotated[int, typer.Option(help="Of each record, at most.")] = 50,
    data: Annotated[str | None, typer.Option(help="Folder with CIFAR-10.")] = None,
    weights: Annotated[list[str] | None, typer.Option(help="MODEL=FILE, trained weights.")] = None,
    precision: Annotated[str, typer.Option(help="auto, fp32 or bf16.")] = "fp32",
) -> None:
    """Prints how far recorded accuracies are from those that are found now."""
    pairs = dict(pair.split("=", 1) for pair in weights or [])
    places = Places(data, pairs)
    folder = Path(__file__).parents[3] / "amc_env" / "recorded_tasks"
    print("| record | plans | largest difference | mean | mean of new - recorded | same origin |")
    print("|---|---|---|---|---|---|")
    for name in names:
        task = read_recorded(folder / f"{name}.npz")
        gaps = differences(task, places, plans, precision)
        sizes = np.abs(gaps)
        same = origin_of(find_task(name), places) == task.origin
        print(
            f"| `{name}` | {len(gaps)} of {len(task.plans)} | {sizes.max():.4f} "
            f"| {sizes.mean():.4f} | {gaps.mean():+.4f} | {'yes' if same else 'no'} |",
            flush=True,
        )


if __name__ == "__main__":
    start(main)
