"""Summary of the rows: scores with failures imputed, and the paper's own statistic."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from amc_compress.automl.protocol import CONSTANT
from amc_compress.automl.records import Training
from amc_env import RunFolderError

TrainingsByKey = Mapping[tuple[str, str, int], Training]


@dataclass(frozen=True)
class Cell:
    """A framework on a data set.

    Args:
        mean: Mean score over the seeds, failures counted as the constant prediction.
        deviation: Sample standard deviation of the same; NaN with one seed.
        failures: How many seeds failed.
        seeds: How many there are.
    """

    mean: float
    deviation: float
    failures: int
    seeds: int


@dataclass(frozen=True)
class Overall:
    """A framework over all data sets of one kind.

    Args:
        scaled: Mean over data sets and seeds, scaled so that the constant prediction is 0 and
            the best framework's mean on a data set is 1 (AMLB).
        rank: Mean rank among the frameworks over data sets, 1 is best.
        paper: The paper's statistic, in [0, 1]; None where no split was finished by all.
        failures: Failed trainings.
        trainings: All trainings.
    """

    scaled: float
    rank: float
    paper: float | None
    failures: int
    trainings: int


def names_of(rows: TrainingsByKey, data_sets: Sequence[str]) -> list[str]:
    """Returns the frameworks that were trained on these data sets, without the constant one."""
    found = (row.framework for row in rows.values() if row.data in data_sets)
    return [name for name in dict.fromkeys(found) if name != CONSTANT]


def cell(rows: TrainingsByKey, framework: str, data: str) -> Cell | None:
    """Returns what a framework achieved on a data set; None if it was not trained there."""
    there = [row for row in rows.values() if (row.framework, row.data) == (framework, data)]
    if not there:
        return None
    scores = [imputed(rows, row) for row in there]
    failures = sum(row.score is None for row in there)
    deviation = float(np.std(scores, ddof=1)) if len(scores) > 1 else math.nan
    return Cell(float(np.mean(scores)), deviation, failures, len(there))


def imputed(rows: TrainingsByKey, row: Training) -> float:
    """Returns a row's score, or the constant prediction's on the same split if it failed.

    Raises:
        RunFolderError: If that is missing: its line was removed from the file.
    """
    if row.score is not None:
        return row.score
    constant = rows.get((CONSTANT, row.data, row.seed))
    if constant is None or constant.score is None:
        raise RunFolderError(
            f"The results have no constant prediction on {row.data}, seed {row.seed}; repeat the "
            f"command that made them, which adds it."
        )
    return constant.score


def overall(
    rows: TrainingsByKey, data_sets: Sequence[str], higher_is_better: bool
) -> dict[str, Overall]:
    """Returns every framework's figures over data sets of one kind.

    Only splits that all these frameworks were trained on can be compared; others are left out.

    Args:
        rows: All rows.
        data_sets: Data sets of one kind.
        higher_is_better: Whether scores are weighted F1 rather than mean squared error.

    Raises:
        RunFolderError: As :func:`imputed`.
    """
    names = names_of(rows, data_sets)
    shared = {k: r for k, r in rows.items() if all((n, *k[1:]) in rows for n in (*names, CONSTANT))}
    sign = 1.0 if higher_is_better else -1.0
    scaled: dict[str, list[float]] = {name: [] for name in names}
    ranks: dict[str, list[float]] = {name: [] for name in names}
    for data in data_sets:
        cells = {name: cell(shared, name, data) for name in (*names, CONSTANT)}
        found = [sign * each.mean for each in cells.values() if each is not None]
        if not found:
            continue
        *means, zero = found
        span = max(means) - zero
        for name, mean, rank in zip(names, means, rankdata(np.negative(means)), strict=True):
            scaled[name].append(float((mean - zero) / span) if span > 0 else 0.0)
            ranks[name].append(float(rank))
    paper = paper_statistic(shared, data_sets, higher_is_better)
    return {
        name: _overall(shared, name, data_sets, scaled[name], ranks[name], paper)
        for name in names
        if ranks[name]
    }


def _overall(
    rows: TrainingsByKey,
    name: str,
    data_sets: Sequence[str],
    scaled: Sequence[float],
    ranks: Sequence[float],
    paper: Mapping[str, float],
) -> Overall:
    there = [r for r in rows.values() if r.framework == name and r.data in data_sets]
    failures = sum(row.score is None for row in there)
    means = float(np.mean(scaled)), float(np.mean(ranks))
    return Overall(*means, paper.get(name), failures, len(there))


def paper_statistic(
    rows: TrainingsByKey, data_sets: Sequence[str], higher_is_better: bool
) -> dict[str, float]:
    """Returns Balaji & Allen's figure: scaled to [0, 1], then averaged.

    Per data set the scores of all frameworks and seeds are scaled so that the worst is 0 and the
    best 1 (mean squared errors turned round; the paper standardises them before, which scaling
    undoes); then the mean over seeds and over data sets. As in the paper, a split that one
    framework failed on is dropped for all; frameworks that succeeded nowhere are left out instead,
    as they would drop every split.

    Args:
        rows: All rows.
        data_sets: Data sets of one kind.
        higher_is_better: Whether scores are weighted F1 rather than mean squared error.
    """
    names = [n for n in names_of(rows, data_sets) if _succeeded(rows, n, data_sets)]
    per_data = []
    for data in data_sets:
        seeds = sorted({row.seed for row in rows.values() if row.data == data})
        table = np.array([[_score(rows, n, data, s) for s in seeds] for n in names])
        table = table[:, ~np.isnan(table).any(axis=0)] if table.size else table
        if table.size:
            per_data.append(_unit(table if higher_is_better else -table).mean(axis=1))
    if not per_data:
        return {}
    return dict(zip(names, np.mean(per_data, axis=0).tolist(), strict=True))


def _unit(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scales to [0, 1]; all are 1 where all are equal."""
    if np.ptp(table) == 0:
        return np.ones_like(table)
    return np.asarray((table - table.min()) / np.ptp(table))


def _succeeded(rows: TrainingsByKey, name: str, data_sets: Sequence[str]) -> bool:
    return any(
        row.score is not None
        for row in rows.values()
        if row.framework == name and row.data in data_sets
    )


def _score(rows: TrainingsByKey, name: str, data: str, seed: int) -> float:
    row = rows.get((name, data, seed))
    return float("nan") if row is None or row.score is None else row.score
