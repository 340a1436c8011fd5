"""Statistics over all tasks, as Agarwal et al. 2021 (2108.13264) recommend for few seeds.

The aggregates and the bootstrap are those of their library, ``rliable``: seeds are drawn again
within each task (strata), tasks are not. Its classes draw from numpy's global generator whatever
they are given; here they draw from one of our own, so that equal scores give equal intervals.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from amc_compress.comparison.statistics.scores import FloatArray
from amc_env import MissingDependencyError

RESAMPLES = 2000
CONFIDENCE = 0.95

AGGREGATES = ("iqm", "median", "mean", "optimality_gap")
"""Interquartile mean, median and mean of the tasks' means, and mean distance below score 1."""


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95% interval; the ends are NaN where one seed leaves them unknown."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True)
class Profile:
    """Share of searches whose score is above each threshold, and its 95% interval.

    Args:
        thresholds: Shape (thresholds,).
        share: Shape (thresholds,), in [0, 1].
        low: Lower ends.
        high: Upper ends.
    """

    thresholds: FloatArray
    share: FloatArray
    low: FloatArray
    high: FloatArray


def require_rliable() -> None:
    """Checks that the optional package is there, before work is done that needs it.

    Raises:
        MissingDependencyError: With the line that installs it.
    """
    if importlib.util.find_spec("rliable") is None:
        raise MissingDependencyError(
            "The statistics of a comparison need rliable; install with: "
            'pip install "amc-compress[compare]"'
        )


def aggregates(
    scores: Mapping[str, FloatArray], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, dict[str, Interval]]:
    """Returns agent -> aggregate -> its value, of :data:`AGGREGATES`.

    Args:
        scores: Agent -> scores, shape (seeds, tasks).
        seed: Of the resampling.
        resamples: How often seeds are drawn again.

    Raises:
        MissingDependencyError: Without the ``compare`` extra.
    """
    require_rliable()
    from rliable import metrics

    functions = [getattr(metrics, f"aggregate_{name}") for name in AGGREGATES]

    def all_of(matrix: FloatArray) -> FloatArray:
        return np.array([function(matrix) for function in functions])

    found = {}
    for agent, matrix in scores.items():
        low, high = _interval(all_of, (matrix,), seed, resamples)
        found[agent] = {
            name: Interval(float(value), float(low[i]), float(high[i]))
            for i, (name, value) in enumerate(zip(AGGREGATES, all_of(matrix), strict=True))
        }
    return found


def improvement(x: FloatArray, y: FloatArray) -> float:
    """Returns the probability that a search of X beats one of Y, on a task drawn at random.

    Mann and Whitney's U / (n m) per task, ties counting half (Agarwal et al. 2021, sec. 4.3).

    Args:
        x: Scores, shape (n, tasks).
        y: Scores, shape (m, tasks).
    """
    pairs = x[:, None, :] - y[None, :, :]
    return float((np.sign(pairs).mean() + 1.0) / 2.0)


def improvements(
    scores: Mapping[str, FloatArray], *, seed: int = 0, resamples: int = RESAMPLES
) -> dict[tuple[str, str], Interval]:
    """Returns (X, Y) -> probability that X beats Y, for every ordered pair of agents.

    Args:
        scores: Agent -> scores, shape (seeds, tasks).
        seed: Of the resampling.
        resamples: How often seeds are drawn again.

    Raises:
        MissingDependencyError: Without the ``compare`` extra.
    """
    require_rliable()

    def as_array(x: FloatArray, y: FloatArray) -> FloatArray:
        return np.array([improvement(x, y)])

    found = {}
    for first, second in combinations(scores, 2):
        x, y = scores[first], scores[second]
        estimate = improvement(x, y)
        (low,), (high,) = _interval(as_array, (x, y), seed, resamples)
        found[first, second] = Interval(estimate, float(low), float(high))
        found[second, first] = Interval(1 - estimate, 1 - float(high), 1 - float(low))
    return found


def performance_profiles(
    scores: Mapping[str, FloatArray],
    thresholds: FloatArray,
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> dict[str, Profile]:
    """Returns agent -> share of its searches above each threshold (score distributions).

    Args:
        scores: Agent -> scores, shape (seeds, tasks).
        thresholds: Scores, shape (thresholds,).
        seed: Of the resampling.
        resamples: How often seeds are drawn again.

    Raises:
        MissingDependencyError: Without the ``compare`` extra.
    """
    require_rliable()

    def shares(matrix: FloatArray) -> FloatArray:
        return np.asarray(np.mean(matrix[..., None] > thresholds, axis=(0, 1)))

    found = {}
    for agent, matrix in scores.items():
        low, high = _interval(shares, (matrix,), seed, resamples)
        found[agent] = Profile(thresholds, shares(matrix), low, high)
    return found


def _interval(
    function: Callable[..., FloatArray],
    matrices: tuple[FloatArray, ...],
    seed: int,
    resamples: int,
) -> tuple[FloatArray, FloatArray]:
    """Percentile interval over stratified resamples; NaN if a matrix has one row only."""
    if any(len(matrix) < 2 for matrix in matrices):
        unknown = np.full(function(*matrices).shape, math.nan)
        return unknown, unknown
    bootstrap = _seeded_bootstrap()(*matrices, seed=np.random.default_rng(seed))
    low, high = bootstrap.conf_int(function, reps=resamples, size=CONFIDENCE, method="percentile")
    return low, high


@functools.cache
def _seeded_bootstrap() -> Any:
    from rliable.library import StratifiedIndependentBootstrap

    class Seeded(StratifiedIndependentBootstrap):  # type: ignore[misc]
        def _get_indices(self, num_runs: int, array_shape: Any, strata_indices: Any) -> Any:
            rows = self.generator.integers(num_runs, size=array_shape)
            return (rows, *strata_indices)

    return Seeded
