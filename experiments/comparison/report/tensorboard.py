"""A comparison for TensorBoard: its figures, and every search with the tags it logged itself."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.image import imread

from amc_compress.comparison.naming import file_names
from amc_compress.comparison.records import SearchRecord
from amc_compress.comparison.statistics.curves import elapsed
from amc_compress.comparison.statistics.scores import Comparison
from amc_compress.runs.events import open_writer
from amc_env.scores.metric import Metric

_SUFFIX = ".comparison"


def write_tensorboard(folder: Path, comparison: Comparison, figures: Mapping[str, bytes]) -> None:
    """Writes event files; those of an earlier report are replaced.

    One run per search, ``task/agent/seed-n``, with the tags of
    ``EpisodeLogger``, so that curves lie over those that were logged during a
    search. The step is the evaluation, counted from 0 as episodes are. The relative time of
    TensorBoard is the processor time of agent and evaluation. The figures are in the run
    ``report``.

    Args:
        folder: Where to write.
        comparison: The searches.
        figures: Name -> PNG file.
    """
    for old in folder.rglob(f"events.out.tfevents.*{_SUFFIX}"):
        old.unlink()
    tasks, agents = file_names(comparison.tasks), file_names(comparison.agents)
    for (task, agent), searches in comparison.searches.items():
        for search in searches:
            run = folder / tasks[task] / agents[agent] / f"seed-{search.seed}"
            if search.trials:
                _write_search(run, search, comparison.tasks[task].metric)
    with open_writer(folder / "report", suffix=_SUFFIX) as writer:
        for name, content in figures.items():
            pixels = np.round(255 * imread(io.BytesIO(content))[..., :3]).astype(np.uint8)
            writer.add_image(f"figures/{name}", pixels, 0, dataformats="HWC")


def _write_search(run: Path, search: SearchRecord, metric: Metric) -> None:
    from tensorboard.compat.proto.summary_pb2 import (  # type: ignore[import-untyped]
        Summary,
    )

    best = -np.inf
    with open_writer(run, suffix=_SUFFIX) as writer:
        files: Any = writer.file_writer
        for trial, seconds in zip(search.trials, elapsed(search), strict=True):
            best = max(best, trial.reward)
            numbers = {
                "reward/last": trial.reward,
                "reward/best": best,
                **{f"info/{name}": n for name, n in metric.named(trial.score).items()},
            }
            # One event for all of them: a comparison has many searches.
            event = Summary(
                value=[Summary.Value(tag=t, simple_value=v) for t, v in numbers.items()]
            )
            files.add_summary(event, trial.evaluation - 1, walltime=float(seconds))
