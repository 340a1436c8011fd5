"""How far recorded tasks can be trusted: held-out figures, and whether agents rank alike on them.

    python -m experiments.benchmarks.recorded_quality amc_env/recorded_tasks/*.npz
    python -m experiments.benchmarks.recorded_quality --results runs/compare/results.jsonl

The first prints what ``amc record`` measured and kept in the files. The second compares, for every
task of a comparison that was searched for real and recorded, the mean rewards of the agents.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from scipy.stats import spearmanr

from amc_env.recorded_file import read_recorded
from experiments.comparison.records import Results, SearchRecord, read_results

RECORDED = "-recorded"

_FEWEST = 10  # plans that a correlation is shown for


def held_out(quality: Mapping[str, Any]) -> str:
    """Returns the agreement of surrogates with plans that they were not fitted to, as a table."""
    lines = [
        "| held out | plans | Spearman | RMSE | bias | top quarter: Spearman | RMSE | bias |",
        "|---|---|---|---|---|---|---|---|",
    ]
    rows = {**quality["cross_validation"], **quality["searches"]}
    for name, row in rows.items():
        if name != "folds" and row["all"]["n"] >= _FEWEST:
            every, top = (
                f"{_rho(row[part])} | {row[part]['rmse']:.4f} | {row[part]['bias']:+.4f}"
                for part in ("all", "top")
            )
            lines.append(f"| {name} | {row['all']['n']} | {every} | {top} |")
    return "\n".join(lines)


def _rho(row: Mapping[str, Any]) -> str:
    """Ranks of equal numbers do not correlate with anything."""
    return "–" if row["spearman"] is None else f"{row['spearman']:.3f}"


def winners(quality: Mapping[str, Any]) -> str:
    """Returns what searches on the surrogate end at: predicted, and judged for real."""
    lines = [
        "| searches on the surrogate | winners | predicted | judged | best | RMSE |",
        "|---|---|---|---|---|---|",
    ]
    rows = {f"round {i}": row for i, row in enumerate(quality["refinement"], start=1)}
    if last := quality.get("winners"):
        rows |= {"fresh ones": last, "not recorded": last["unseen"]}
    for name, row in rows.items():
        if row:
            lines.append(
                f"| {name} | {row['searches']} | {row['predicted']:.4f} | {row['judged']:.4f} "
                f"| {row['best_judged']:.4f} | {row['rmse']:.4f} |"
            )
    return "\n".join(lines)


def best_rewards(searches: Iterable[SearchRecord], task: str, within: int) -> dict[str, float]:
    """Returns agent -> mean over seeds of the best reward within so many judgements."""
    rewards: dict[str, list[float]] = {}
    for search in searches:
        best = search.best_at(within)
        if search.task == task and search.error is None and np.isfinite(best):
            rewards.setdefault(search.agent, []).append(best)
    return {agent: float(np.mean(values)) for agent, values in rewards.items()}


def agreement(results: Results, task: str) -> str:
    """Returns the agents' mean rewards on a task and on its record, as a table with their rho."""
    within = min(
        search.evaluations
        for search in results.searches
        if search.task in (task, f"{task}{RECORDED}")
    )
    real, recorded = (
        best_rewards(results.searches, name, within) for name in (task, f"{task}{RECORDED}")
    )
    both = sorted(real.keys() & recorded.keys(), key=lambda agent: -real[agent])
    lines = [f"| {task}, {within} judgements | network | recorded |", "|---|---|---|"]
    lines += [f"| {agent} | {real[agent]:.4f} | {recorded[agent]:.4f} |" for agent in both]
    rho = spearmanr([real[a] for a in both], [recorded[a] for a in both]).statistic
    return "\n".join([*lines, f"Spearman's rho over {len(both)} agents: {rho:.3f}"])


def main(
    files: Annotated[list[Path] | None, typer.Argument(help="Recorded tasks.")] = None,
    results: Annotated[Path | None, typer.Option(help="Of a comparison.")] = None,
) -> None:
    """Prints the tables."""
    for path in files or []:
        task = read_recorded(path)
        print(f"## {task.name}: {task.counts()}, {path.stat().st_size} bytes\n")
        print(held_out(task.quality), winners(task.quality), sep="\n\n", end="\n\n")
    if results is not None:
        found = read_results(results)
        for task_name in found.tasks:
            if f"{task_name}{RECORDED}" in found.tasks:
                print(agreement(found, task_name), end="\n\n")


if __name__ == "__main__":
    typer.run(main)
