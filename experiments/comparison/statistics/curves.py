"""Best reward so far: against evaluations and against processor seconds, mean over seeds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from amc_compress.comparison.records import SearchRecord
from amc_compress.comparison.statistics.scores import Comparison, FloatArray, ScoreMatrices

CONFIDENCE = 0.95
RESAMPLES = 1000

_SECONDS_POINTS = 160
# Agents that only look something up may take less than the clock can tell.
_SHORTEST = 1e-3


@dataclass(frozen=True)
class Curve:
    """A mean over seeds and its 95% interval, point by point.

    Args:
        x: Evaluations or seconds, shape (points,), ascending.
        mean: Mean best reward of the seeds.
        low: Lower end; NaN for a single seed.
        high: Upper end.
    """

    x: FloatArray
    mean: FloatArray
    low: FloatArray
    high: FloatArray


def evaluation_curves(comparison: Comparison, task: str, *, seed: int = 0) -> dict[str, Curve]:
    """Returns every agent's best reward against evaluations.

    A curve begins when each of its searches has evaluated a plan within the budget. Searches that
    failed lie at the uniform plan's reward throughout.

    Args:
        comparison: The searches.
        task: Name of the task.
        seed: Of the resampling.
    """
    counts = np.arange(1.0, comparison.evaluations[task] + 1)
    return {
        agent: _curve(counts, _best_rewards(comparison, task, agent, counts), seed)
        for agent in comparison.agents_of(task)
    }


def seconds_curves(comparison: Comparison, task: str, *, seed: int = 0) -> dict[str, Curve]:
    """Returns every agent's best reward against its own and the evaluation's processor seconds.

    As :func:`evaluation_curves`; a curve ends with the longest of its searches.

    Args:
        comparison: The searches.
        task: Name of the task.
        seed: Of the resampling.
    """
    uniform = comparison.tasks[task].uniform_reward
    curves = {}
    for agent in comparison.agents_of(task):
        searches = comparison.searches[task, agent]
        times = [elapsed(search) for search in searches]
        if not any(len(t) and s.error is None for s, t in zip(searches, times, strict=True)):
            continue
        started = [t for s, t in zip(searches, times, strict=True) if s.error is None and len(t)]
        first, last = max(t[0] for t in started), max(t[-1] for t in started)
        points = np.geomspace(first, last, _SECONDS_POINTS) if last > first else np.array([last])
        points[0], points[-1] = first, last  # not a rounding error before or after
        steps = [
            _steps(s, t.tolist(), points, uniform) for s, t in zip(searches, times, strict=True)
        ]
        curves[agent] = _curve(points, np.stack(steps), seed)
    return curves


def iqm_curves(comparison: Comparison, matrices: ScoreMatrices) -> dict[str, Curve]:
    """Returns every agent's interquartile mean score against evaluations, without intervals.

    Args:
        comparison: The searches.
        matrices: Which tasks and agents to show.
    """
    least = min(comparison.evaluations[task] for task in matrices.tasks)
    counts = np.arange(1.0, least + 1)
    unknown = np.full(least, math.nan)
    curves = {}
    for agent, rows in matrices.scores.items():
        columns = []
        for task in matrices.tasks:
            best = _best_rewards(comparison, task, agent, counts)
            best = np.where(np.isnan(best), comparison.tasks[task].uniform_reward, best)
            seeds = np.resize(np.arange(len(best)), len(rows))
            columns.append(comparison.scores(task, best[seeds]))
        means = scipy.stats.trim_mean(np.concatenate(columns), 0.25, axis=0)
        curves[agent] = Curve(counts, means, unknown, unknown)
    return curves


def elapsed(search: SearchRecord) -> FloatArray:
    """Returns the CPU-seconds of agent and evaluation at the end of each trial, shape (trials,)."""
    steps = [trial.agent_seconds + trial.judge_seconds for trial in search.trials]
    return np.maximum(np.cumsum(np.array(steps, dtype=np.float64)), _SHORTEST)


def _best_rewards(comparison: Comparison, task: str, agent: str, counts: FloatArray) -> FloatArray:
    """Best reward of every search within so many evaluations, shape (seeds, counts)."""
    uniform = comparison.tasks[task].uniform_reward
    return np.stack(
        [
            _steps(search, [t.evaluation for t in search.trials], counts, uniform)
            for search in comparison.searches[task, agent]
        ]
    )


def _steps(
    search: SearchRecord, places: Sequence[float], points: FloatArray, uniform: float
) -> FloatArray:
    """Best reward of one search at each point; NaN before its first plan."""
    if search.error is not None or not search.trials:
        return np.full(len(points), uniform)
    best = np.maximum.accumulate([trial.reward for trial in search.trials])
    reached = np.searchsorted(np.asarray(places), points, side="right")
    return np.where(reached > 0, best[np.maximum(reached - 1, 0)], math.nan)


def _curve(points: FloatArray, steps: FloatArray, seed: int) -> Curve:
    """Mean and percentile interval over seeds of values of shape (seeds, points)."""
    started = ~np.isnan(steps).any(axis=0)
    points, steps = points[started], steps[:, started]
    mean = steps[0] + np.mean(steps - steps[0], axis=0)
    if len(steps) < 2 or not len(points):
        return Curve(points, mean, np.full(len(points), math.nan), np.full(len(points), math.nan))
    ends = scipy.stats.bootstrap(
        (steps,),
        np.mean,
        n_resamples=RESAMPLES,
        confidence_level=CONFIDENCE,
        method="percentile",
        vectorized=True,
        batch=50,
        axis=0,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return Curve(points, mean, np.asarray(ends.low), np.asarray(ends.high))
