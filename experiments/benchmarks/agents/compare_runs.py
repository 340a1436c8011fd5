"""A table over run folders: one row per agent, mean and spread over seeds.

    python -m amc_compress.benchmarks.agents.compare_runs runs/r20/*

Folders may hold a finished search only, or a whole run; columns that no folder of an agent fills
stay empty. "search" is the best proxy accuracy on the images that the search saw, "validation" the
accuracy of the chosen plan on the whole validation split, "test" the accuracy of the fine-tuned
network on the test set.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from amc_compress.benchmarks.bench import markdown, spread, start
from amc_compress.report.summary import read_summary
from amc_compress.runs.folder import RunFolder
from amc_compress.runs.storage.trials import read_trials
from amc_env import CompressionError

COLUMNS = ("search", "validation", "cost ratio", "test", "episodes", "CPU-s/episode", "seconds")


def read_run(path: Path) -> tuple[str, dict[str, float]]:
    """Returns the agent's name and the numbers of one run folder.

    Raises:
        RunFolderError: If the folder has no finished search.
    """
    folder = RunFolder.open(path, uses=())
    result = folder.results("search")
    trials = read_trials(path / "trials.jsonl")
    bounded = next(iter(result["best"]["cost_ratio"]))
    row = {
        "search": max(trial.score for trial in trials),
        "validation": result["reward"],
        "cost ratio": result["best"]["cost_ratio"][bounded],
        "episodes": float(len(trials)),
        "CPU-s/episode": result["cpu_seconds_per_episode"],
        "seconds": result["seconds"],
    }
    if (path / "summary.json").exists():
        row["test"] = read_summary(path)["compressed"]["score"]
    return folder.config.agent, row


def main(folders: Annotated[list[Path], typer.Argument(help="Run folders.")]) -> None:
    """Prints mean and spread per agent."""
    runs: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for path in folders:
        try:
            agent, row = read_run(path)
        except CompressionError as error:
            raise typer.BadParameter(str(error)) from error
        runs[agent].append(row)
    print(
        markdown(
            ["agent", "runs", *COLUMNS],
            (
                [agent, len(rows), *(spread([r[c] for r in rows if c in r]) for c in COLUMNS)]
                for agent, rows in sorted(runs.items())
            ),
        )
    )


if __name__ == "__main__":
    start(main)
