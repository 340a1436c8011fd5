"""Where a line of plans leaves the budget, with a proof of which plans bisection would choose.

Bisection asks thirty times. Every cost of product form rises along the line and is a polynomial
between two kinks; its root says where the answer lies, and two neighbouring points, one certainly
within the bound and one certainly not (by more than rounding can change), say what bisection finds.
"""

from __future__ import annotations

import bisect
import math
import operator
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from amc_env.budgets.walk import Line
from amc_env.costs.products import Array

BISECTIONS = 30
_TOP = 1 << BISECTIONS
_NEWTON = 12
_EPSILON = 2.0**-52


class Doubt(NamedTuple):
    """Of the points ``k / 2**30``: ``k <= fits`` are within the bounds, ``k >= breaks`` are not."""

    fits: int
    breaks: int

    @property
    def is_settled(self) -> bool:
        """Whether nothing lies in between."""
        return self.breaks - self.fits <= 1

    @property
    def answer(self) -> float:
        """The last point within the bounds."""
        return self.fits / _TOP


UNKNOWN = Doubt(0, _TOP)
"""The first point is taken to be within the bounds, the last one is known not to be."""

WITHIN = Doubt(_TOP, _TOP + 1)
"""All points are within the bounds."""


def bisected(doubt: Doubt, fits: Callable[[float], bool]) -> float:
    """Returns what bisection finds in [0, 1], asking only where there is doubt.

    Args:
        doubt: What is known.
        fits: Whether a point is within all bounds.
    """
    low, high = 0, _TOP
    while high - low > 1:
        middle = (low + high) // 2
        if middle <= doubt.fits or (middle < doubt.breaks and fits(middle / _TOP)):
            low = middle
        else:
            high = middle
    return low / _TOP


class Balance:
    """Finds where the costs on a line reach their upper bounds.

    Args:
        line: The line; each of its costs has a bound.
        bounds: What each cost may be at most, shape ``(n_costs,)``.
    """

    def __init__(self, line: Line, bounds: Sequence[float]) -> None:
        sums = line.sums
        self._degree = line.degree
        self._kinks: list[float] = line.kinks.tolist()
        # In the sums' own numbers, which are divided and rounded to units afterwards.
        self._bounds = [
            float(b * d / p) for b, d, p in zip(bounds, sums.divisor, sums.parts, strict=True)
        ]
        size = len(line.values) + line.n_terms
        # Sums of positive numbers here and in the cost model, each with its rounding errors, and
        # ``cost_model.whole``, at most twice.
        rounding = _EPSILON * (64 + size) * np.abs(line.totals).max(axis=1)
        whole = [5e-9 / p + 2.5e-13 * b for p, b in zip(sums.parts, self._bounds, strict=True)]
        self._margins = [float(a + b) for a, b in zip(rounding, whole, strict=True)]
        nodes = np.arange(line.degree + 1) / line.degree
        inverse = np.linalg.inv(np.vander(nodes, increasing=True))
        self._to_powers: list[list[float]] = inverse.tolist()

    def doubt(self, totals: Array) -> Doubt:
        """Returns what is known about all costs at once.

        Args:
            totals: Their sums at the points of the line, shape ``(n_costs, n_points)``.
        """
        fits, breaks = _TOP - 1, _TOP
        for row, bound, margin in zip(totals.tolist(), self._bounds, self._margins, strict=True):
            # A cost that is within its bound where another one is not changes nothing.
            within = row[-1] if breaks == _TOP else _value(*self._place(row, breaks))
            if within > bound - margin:
                one = self._doubt_of(row, bound, margin)
                fits, breaks = min(fits, one[0]), min(breaks, one[1])
        return Doubt(fits, breaks)

    def settled(self, totals: Array) -> Array:
        """Returns the last point within the bounds of each plan; NaN where there is doubt.

        Args:
            totals: Sums at the points of the line, shape ``(n_costs, n_plans, n_points)``; of no
                plan all costs are within their bounds everywhere.
        """
        fits = np.full(totals.shape[1], _TOP - 1.0)
        breaks = np.full(totals.shape[1], float(_TOP))
        for rows, bound, margin in zip(totals, self._bounds, self._margins, strict=True):
            reached = rows[:, -1] > bound - margin
            one = self._settled_of(rows[reached], bound, margin)
            fits[reached] = np.minimum(fits[reached], one[0])
            breaks[reached] = np.minimum(breaks[reached], one[1])
        return np.where(breaks - fits <= 1.0, fits / _TOP, np.nan)

    def _settled_of(self, rows: Array, bound: float, margin: float) -> tuple[Array, Array]:
        """Of one cost the last point that is certainly within, and the first that is not."""
        kinks = np.array(self._kinks)
        ends = rows[:, :: self._degree]
        cell = np.clip((ends <= bound).sum(axis=1) - 1, 0, len(kinks) - 2)
        nodes = cell[:, None] * self._degree + np.arange(self._degree + 1)
        powers = (np.take_along_axis(rows, nodes, axis=1) @ np.array(self._to_powers).T).T
        low, length = kinks[cell], np.diff(kinks)[cell]
        place = np.full(len(rows), 1.0)  # convex: Newton's steps come from above
        for _ in range(_NEWTON):
            value, slope = _polynomial(powers, place)
            step = (value - bound) / np.maximum(slope, 1e-200)
            place = np.clip(place - step, 0.0, 1.0)
        fits = np.minimum(np.floor((low + place * length) * _TOP), _TOP - 1.0)
        breaks = fits + 1.0
        below, above = ((point / _TOP - low) / length for point in (fits, breaks))
        is_within = (below >= 0.0) & (_polynomial(powers, below)[0] <= bound - margin)
        is_beyond = (above <= 1.0) & (_polynomial(powers, above)[0] >= bound + margin)
        return np.where(is_within, fits, 0.0), np.where(is_beyond, breaks, float(_TOP))

    def _doubt_of(self, row: list[float], bound: float, margin: float) -> tuple[int, int]:
        """Of one cost the last point that is certainly within, and the first that is not."""
        ends = row[:: self._degree]
        cell = min(max(bisect.bisect_right(ends, bound) - 1, 0), len(ends) - 2)
        powers, low, high = self._powers(row, cell), self._kinks[cell], self._kinks[cell + 1]
        place = _root(powers, bound, ends[cell], ends[cell + 1])

        def at(point: int) -> float:
            share = point / _TOP
            if low <= share <= high:
                return _value(powers, (share - low) / (high - low))
            return _value(*self._place(row, point))

        fits, step = min(int((low + place * (high - low)) * _TOP), _TOP - 1), 1
        breaks = fits + 1
        while fits > 0 and at(fits) > bound - margin:
            fits, step = max(0, fits - step), 4 * step
        step = 1
        while breaks < _TOP and at(breaks) < bound + margin:
            breaks, step = min(_TOP, breaks + step), 4 * step
        return fits, breaks

    def _place(self, row: list[float], point: int) -> tuple[list[float], float]:
        """The coefficients around ``point / 2**30``, and where it lies in its cell."""
        share = point / _TOP
        cell = min(bisect.bisect_right(self._kinks, share) - 1, len(self._kinks) - 2)
        low, high = self._kinks[cell], self._kinks[cell + 1]
        return self._powers(row, cell), (share - low) / (high - low)

    def _powers(self, row: list[float], cell: int) -> list[float]:
        """Coefficients of a cost within a cell, by the share of the cell, rising."""
        first = cell * self._degree
        nodes = row[first : first + self._degree + 1]
        if self._degree == 2:  # the usual one
            a, b, c = nodes
            return [a, 4 * b - 3 * a - c, 2 * (a + c) - 4 * b]
        return [sum(map(operator.mul, each, nodes)) for each in self._to_powers]


def _value(powers: Sequence[float], place: float) -> float:
    value = 0.0
    for power in reversed(powers):
        value = value * place + power
    return value


def _root(powers: Sequence[float], bound: float, low: float, high: float) -> float:
    """Where a polynomial from ``low`` to ``high`` reaches a bound, in [0, 1], nearly."""
    if len(powers) == 3:  # the usual one
        constant, slope, bend = powers
        rise = bound - constant
        steepness = slope + math.sqrt(max(0.0, slope * slope + 4.0 * bend * rise))
        if steepness > 0.0:
            return min(1.0, max(0.0, 2.0 * rise / steepness))
    place = min(1.0, max(0.0, (bound - low) / max(high - low, 1e-300)))
    for _ in range(_NEWTON):
        value = slope = 0.0
        for power in reversed(powers):
            slope = slope * place + value
            value = value * place + power
        if slope <= 0.0:
            break
        step = (value - bound) / slope
        place = min(1.0, max(0.0, place - step))
        if -1e-14 < step < 1e-14:
            break
    return place


def _polynomial(powers: Array, place: Array) -> tuple[Array, Array]:
    """Values and slopes of polynomials, one per column of coefficients."""
    value = slope = np.zeros_like(place)
    for power in powers[::-1]:
        slope = slope * place + value
        value = value * place + power
    return value, slope
