"""Significance of differences between agents on a task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
import scipy.stats

from amc_compress.comparison.statistics.scores import FloatArray, Sample

CONFIDENCE = 0.95
RESAMPLES = 9999


@dataclass(frozen=True)
class Difference:
    """The difference of two agents' mean rewards on a task.

    Args:
        better: The agent with the higher mean.
        worse: The other one.
        estimate: Difference of the means over seeds, at least 0.
        low: Lower end of its 95% interval, the wider one of the bootstrap's and Welch's; NaN if
            the seeds are too few to tell.
        high: Upper end.
        p_value: Of Welch's test, or an exact one where nothing varies; NaN if an agent has one
            seed only and is not deterministic.
        adjusted_p_value: The same after Holm's correction for all pairs that are compared: those
            with the reference, if there is one.
    """

    better: str
    worse: str
    estimate: float
    low: float
    high: float
    p_value: float
    adjusted_p_value: float = math.nan

    @property
    def is_known(self) -> bool:
        """Whether anything is known of how much of it is luck."""
        return not math.isnan(self.p_value)

    @property
    def is_real(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low > 0 or self.high < 0

    @property
    def holds_among_all(self) -> bool:
        """Whether it is real and stays so with Holm's correction for all pairs compared."""
        return self.is_real and self.adjusted_p_value < 1 - CONFIDENCE


def differences(
    samples: Mapping[str, Sample], *, reference: str | None = None, seed: int = 0
) -> list[Difference]:
    """Compares every two agents on a task, or every agent with a reference.

    Args:
        samples: Agent -> its best rewards on the task.
        reference: Compare with this agent only.
        seed: Of the resampling.

    Returns:
        One entry per pair, corrected by Holm for their number.
    """
    pairs = [
        (first, second)
        for first, second in combinations(samples, 2)
        if reference in (None, first, second)
    ]
    found = [_difference(samples, first, second, seed) for first, second in pairs]
    adjusted = holm([d.p_value for d in found])
    return [replace(d, adjusted_p_value=p) for d, p in zip(found, adjusted, strict=True)]


def holm(p_values: Sequence[float]) -> list[float]:
    """Returns p-values corrected for their number (Holm 1979); NaN stays and is not counted."""
    known = [i for i, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    largest = 0.0
    for place, i in enumerate(sorted(known, key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(known) - place) * p_values[i]))
        adjusted[i] = largest
    return adjusted


def _difference(samples: Mapping[str, Sample], first: str, second: str, seed: int) -> Difference:
    # Sorted by name where means are equal, so that the order of the file changes nothing.
    better, worse = sorted((first, second), key=lambda agent: (-samples[agent].mean, agent))
    x, y = samples[better], samples[worse]
    estimate = x.mean - y.mean
    if any(len(s.rewards) < 2 and not s.is_fixed for s in (x, y)):
        return Difference(better, worse, estimate, math.nan, math.nan, math.nan)
    error, freedom = _welch(x, y)
    if error == 0.0:
        return _without_spread(better, worse, estimate, _smallest_p(x, y))
    p_value = float(2 * scipy.stats.t.sf(estimate / error, freedom))
    # Resampled means cannot leave the range of a few rewards, however far the mean of new seeds
    # may lie: the t interval makes up for that, as the bootstrap does for skewness.
    half = error * float(scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom))
    low, high = _interval(np.sort(x.rewards), np.sort(y.rewards), error, freedom, seed)
    low, high = min(low, estimate - half), max(high, estimate + half)
    return Difference(better, worse, estimate, low, high, p_value)


def _without_spread(better: str, worse: str, estimate: float, smallest: float) -> Difference:
    """What is known where the seeds of each agent agree.

    The interval holds the differences that the exact test does not reject: the estimate alone, or
    every one if there are too few seeds to reject any.
    """
    end = estimate if smallest < 1 - CONFIDENCE else math.nan
    return Difference(better, worse, estimate, end, end, 1.0 if estimate == 0.0 else smallest)


def _smallest_p(x: Sample, y: Sample) -> float:
    """The least p-value that so many seeds can have, in an exact test of two sides.

    Permutations between two agents that chance has a part in; signs of the differences from one
    that it has no part in; 0 between two of these.
    """
    n, m = (len(s.rewards) for s in (x, y))
    if x.is_fixed and y.is_fixed:
        return 0.0
    if x.is_fixed or y.is_fixed:
        return min(1.0, 2.0 * 0.5 ** (m if x.is_fixed else n))
    return min(1.0, 2.0 / math.comb(n + m, n))


def _welch(x: Sample, y: Sample) -> tuple[float, float]:
    """Standard error of the difference of the means, and its degrees of freedom (Welch 1947).

    Seeds that happen to agree do not show that chance has no part in an agent: they are given the
    variance of the other one.
    """
    found = [_variance(s) for s in (x, y)]
    used = [
        other if own == 0.0 and not s.is_fixed else own
        for s, own, other in zip((x, y), found, reversed(found), strict=True)
    ]
    parts = [(v / len(s.rewards), len(s.rewards)) for s, v in zip((x, y), used, strict=True)]
    total = sum(part for part, _ in parts)
    if total == 0.0:
        return 0.0, math.inf
    freedom = total**2 / sum(part**2 / (n - 1) for part, n in parts if part)
    return math.sqrt(total), freedom


def _variance(sample: Sample) -> float:
    """Sample variance; exactly 0 if all rewards are equal."""
    return 0.0 if np.ptp(sample.rewards) == 0 else float(np.var(sample.rewards, ddof=1))


def _interval(
    x: FloatArray, y: FloatArray, error: float, freedom: float, seed: int
) -> tuple[float, float]:
    """Expanded percentile interval of the bootstrap.

    Hesterberg 2015, American Statistician 69, 371-386. With few seeds the plain percentiles are
    too narrow: resampled means vary less than means of new seeds by (n - 1) / n, and have normal
    instead of t tails. Percentiles further out make up for both, as far as they lie within what
    resampling can reach.
    """
    resampled_error = math.sqrt(np.var(x) / len(x) + np.var(y) / len(y))
    quantile = scipy.stats.t.ppf((1 + CONFIDENCE) / 2, freedom)
    tail = scipy.stats.norm.cdf(-quantile * error / resampled_error)
    # One observation is drawn again as itself, which scipy only does for two equal ones.
    samples = [np.resize(values, max(2, len(values))) for values in (x, y)]
    interval = scipy.stats.bootstrap(
        samples,
        lambda a, b, axis: np.mean(a, axis=axis) - np.mean(b, axis=axis),
        n_resamples=RESAMPLES,
        confidence_level=1 - 2 * float(tail),
        method="percentile",
        vectorized=True,
        random_state=np.random.default_rng(seed),
    ).confidence_interval
    return float(interval.low), float(interval.high)
