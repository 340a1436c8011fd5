"""Fidelity of recorded tasks: held-out figures, and agreement of agent rankings.

    python -m amc_compress.benchmarks.agents.recorded_quality amc_env/recorded_tasks/*.npz
    python -m amc_compress.benchmarks.agents.recorded_quality --results runs/compare/results.jsonl

The first prints what ``amc record`` measured and kept in the files. The second compares, for every
task of a comparison that was searched for real and recorded, the mean rewards of the agents.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from scipy.stats import spearmanr

from amc_compress.benchmarks.bench import start
from amc_compress.comparison.records import read_results
from amc_compress.comparison.statistics.ranks import ranks_of_means
from amc_compress.comparison.statistics.scores import Comparison, Sample, select
from amc_env.recorded_tasks.recorded_file import read_recorded

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
    """Returns what searches on the surrogate end at: predicted, and evaluated for real."""
    lines = [
        "| searches on the surrogate | winners | predicted | evaluated | best | RMSE |",
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


def agreement(comparison: Comparison, task: str) -> str:
    """Returns the agents' mean rewards on a task and on its record, as a table with their rho.

    The samples are those of the comparison: a search that failed, or has evaluated no plan within
    the budget yet, counts as the uniform plan. How many of a mean did is written in brackets.

    Args:
        comparison: Searches of both.
        task: Name of the task that is searched for real.
    """
    names = (task, f"{task}{RECORDED}")
    within = min(comparison.evaluations[name] for name in names)
    real, recorded = (comparison.samples(name, within) for name in names)
    both = sorted((a for a in real if a in recorded), key=lambda agent: -real[agent].mean)
    lines = [f"| {task}, {within} evaluations | network | recorded |", "|---|---|---|"]
    lines += [f"| {agent} | {_mean(real[agent])} | {_mean(recorded[agent])} |" for agent in both]
    # Ranks as in the report, where means that differ by rounding only share one.
    ranks = [ranks_of_means({a: side[a] for a in both}) for side in (real, recorded)]
    rho = _rho_of(*([rank[a] for a in both] for rank in ranks))
    return "\n".join([*lines, f"Spearman's rho over {len(both)} agents: {rho}"])


def _mean(sample: Sample) -> str:
    return f"{sample.mean:.4f}" + (f" [{sample.imputed}]" if sample.imputed else "")


def _rho_of(real: Sequence[float], recorded: Sequence[float]) -> str:
    if len(real) < 2 or len(set(real)) == 1 or len(set(recorded)) == 1:
        return "not defined"
    return f"{spearmanr(real, recorded).statistic:.3f}"


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
        comparison = select(read_results(results))
        for task_name in comparison.tasks:
            if f"{task_name}{RECORDED}" in comparison.tasks:
                print(agreement(comparison, task_name), end="\n\n")


if __name__ == "__main__":
    start(main)
