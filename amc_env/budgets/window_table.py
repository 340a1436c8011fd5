"""Which costs the rest of a plan can reach, exactly: subset sums over decisions and their pairs.

Where a window is so narrow that branching does not end, but every bounded cost is a sum over
decisions and pairs of them (multiply-adds, bytes, bits), its possible values are whole multiples of
a unit. Going backwards through the decisions, the sums that those from ``i`` on can add are a set
of whole numbers, kept as the bits of one long integer: a choice shifts it, alternatives are joined
by "or" (Bellman 1957 on the pseudo-polynomial knapsack). What two decisions add together needs a
set for every choice of the decisions before ``i`` that some later one is paired with.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc_env.costs.cost_terms import Array, CostTerms, cost_terms

MAX_BITS = 400_000_000
"""Bits of all sets together: 50 MB."""

_MAX_WORK = 12_000_000_000  # bits shifted while the sets are made: about a second
_TOLERANCE = 1e-11  # of a cost: what counts as a multiple of the unit
_MAX_UNITS = 1 << 40

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True)
class _Steps:
    """All bounded costs of a plan as one whole number: ``sum(single) + sum(pair)``."""

    single: tuple[list[int], ...]
    pair: dict[tuple[int, int], list[list[int]]]
    size: int


@dataclass(frozen=True)
class _Lattice:
    """One cost: ``base + unit * (single + pair)``, all parts whole and at least 0."""

    base: float
    unit: float
    single: tuple[Ints, ...]
    pair: dict[tuple[int, int], Ints]
    top: int

    def window(self, lower: float, upper: float, original: float) -> tuple[int, int]:
        """Returns the first and the last multiple whose cost / original lies within the bounds."""
        low = math.floor((lower * original - self.base) / self.unit) - 1
        high = math.ceil((upper * original - self.base) / self.unit) + 1
        low, high = max(0, low), min(self.top, high)
        # The same division as that of the ratios themselves, so that equal costs are equal.
        while low <= high and (self.base + self.unit * low) / original < lower:
            low += 1
        while low <= high and (self.base + self.unit * high) / original > upper:
            high -= 1
        return low, high


class WindowTable:
    """Tells whether the first choices of a plan can be completed within windows of costs.

    Make one by :meth:`build`.

    Args:
        steps: The costs.
        windows: The sums that lie within every bound; each begins and ends a run.
        rows: Per decision the earlier decisions that it and later ones are paired with.
        sets: Per decision and choices of those: the sums that it and later ones can add.
    """

    def __init__(
        self,
        steps: _Steps,
        windows: Sequence[tuple[int, int]],
        rows: Sequence[tuple[int, ...]],
        sets: Sequence[dict[tuple[int, ...], int]],
    ) -> None:
        self._steps = steps
        self._windows = windows
        self._rows = rows
        self._sets = sets

    @classmethod
    def build(
        cls,
        costs: Mapping[str, Callable[[Array], float]],
        original: Mapping[str, float],
        bounds: Mapping[str, tuple[float, float]],
        grids: Sequence[Array],
    ) -> WindowTable | None:
        """Returns the table, None where costs are no such sums or there are too many of them.

        Args:
            costs: Name -> cost of complete values.
            original: Name -> what ratios of the cost refer to.
            bounds: Name -> smallest and largest ratio allowed.
            grids: The choices of each decision, ascending.
        """
        lattices = []
        for name in bounds:
            rng = np.random.default_rng(0)
            lattice = _lattice(cost_terms(costs[name], grids, rng, _TOLERANCE))
            if lattice is None:
                return None
            lattices.append(lattice)
        if math.prod(x.top + 1 for x in lattices) > MAX_BITS:
            return None
        windows = _windows(lattices, [(*b, original[name]) for name, b in bounds.items()])
        return _build(_packed(lattices, len(grids)), windows, len(grids))

    def complete(self, first: Sequence[int]) -> list[int] | None:
        """Returns the choices of a plan within the windows, None if there is none.

        Args:
            first: Indices of the choices made so far.
        """
        steps, index = self._steps, [*first]
        spent = sum(steps.single[i][a] for i, a in enumerate(index)) + sum(
            table[index[i]][index[j]] for (i, j), table in steps.pair.items() if j < len(index)
        )
        left = self._reachable(index, spent)
        if left is None:
            return None
        for i in range(len(index), len(steps.single)):
            for choice in range(len(steps.single[i])):
                added = _added(steps, index, i, choice)
                later = self._set([*index, choice])
                if left >= added and later >> (left - added) & 1:
                    index.append(choice)
                    left -= added
                    break
        return index

    def _set(self, index: Sequence[int]) -> int:
        n = len(index)
        return self._sets[n].get(tuple(index[i] for i in self._rows[n]), 0)

    def _reachable(self, index: Sequence[int], spent: int) -> int | None:
        """A sum that the rest can add so that a window is met: the largest one there is."""
        later = self._set(index)
        for low, high in reversed(self._windows):
            if high < spent:
                continue
            part = later >> max(0, low - spent)
            part &= (1 << (high - max(low, spent) + 1)) - 1
            if part:
                return part.bit_length() - 1 + max(0, low - spent)
        return None


def _added(steps: _Steps, index: Sequence[int], i: int, choice: int) -> int:
    """What a choice adds to the sum behind the choices before it."""
    pairs = sum(table[index[j]][choice] for (j, k), table in steps.pair.items() if k == i)
    return steps.single[i][choice] + pairs


def _build(steps: _Steps, windows: list[tuple[int, int]], n: int) -> WindowTable | None:
    """Makes the sets from the last decision to the first."""
    choices = [len(s) for s in steps.single]
    rows = [tuple(sorted({i for i, j in steps.pair if i < k <= j})) for k in range(n + 1)]
    counts = [math.prod(choices[i] for i in row) for row in rows]
    work = sum(counts[k] * choices[k] * steps.size for k in range(n))
    if not windows or sum(counts) * steps.size > MAX_BITS or work > _MAX_WORK:
        return None
    sets: list[dict[tuple[int, ...], int]] = [{} for _ in range(n)] + [{(): 1}]
    for k in reversed(range(n)):
        ahead = rows[k + 1]
        for chosen in itertools.product(*(range(choices[i]) for i in rows[k])):
            known = dict(zip(rows[k], chosen, strict=True))
            pairs = [(i, table) for (i, j), table in steps.pair.items() if j == k]
            reached = 0
            for choice in range(choices[k]):
                shift = steps.single[k][choice]
                shift += sum(table[known[i]][choice] for i, table in pairs)
                key = tuple(choice if i == k else known[i] for i in ahead)
                reached |= sets[k + 1][key] << shift
            sets[k][chosen] = reached
    return WindowTable(steps, windows, rows, sets)


def _lattice(terms: CostTerms) -> _Lattice | None:
    """The terms of a cost as whole multiples of the largest unit there is."""
    if not terms.is_exact:
        return None
    tables: list[Array] = [*terms.single, *terms.pair.values()]
    scale = max(abs(terms.constant), *(float(np.abs(t).max(initial=0.0)) for t in tables))
    unit = _common_unit(np.concatenate([t.ravel() for t in tables]), scale)
    if unit is None:
        return None
    lows = [float(t.min()) for t in tables]
    whole = [
        np.rint((t - low) / unit).astype(np.int64) for t, low in zip(tables, lows, strict=True)
    ]
    n = len(terms.single)
    pairs = dict(zip(terms.pair, whole[n:], strict=True))
    top = sum(int(t.max()) for t in whole)
    return _Lattice(terms.constant + sum(lows), unit, tuple(whole[:n]), pairs, top)


def _common_unit(numbers: Array, scale: float) -> float | None:
    """The largest number that all are multiples of, up to rounding; None if there is none."""
    noise = _TOLERANCE * scale
    unit = 0.0
    for number in np.unique(np.abs(numbers)):
        a, b = float(number), unit
        while b > noise:
            a, b = b, abs(math.remainder(a, b))
        unit = a
    if unit <= noise or scale / unit > _MAX_UNITS:
        return 1.0 if unit <= noise and float(np.abs(numbers).max(initial=0.0)) <= noise else None
    # Euclid's divisions lose digits: the largest multiple tells the unit best.
    largest = float(np.abs(numbers).max())
    unit = largest / round(largest / unit)
    off = np.abs(numbers - unit * np.rint(numbers / unit))
    return unit if float(off.max()) <= 1e-3 * unit else None


def _packed(lattices: Sequence[_Lattice], n: int) -> _Steps:
    """All costs side by side in one number: sums of one never reach into the next."""
    single: list[Ints] = [np.zeros_like(s) for s in lattices[0].single]
    pair: dict[tuple[int, int], Ints] = {}
    stride = 1
    for lattice in lattices:
        single = [s + stride * t for s, t in zip(single, lattice.single, strict=True)]
        for key, table in lattice.pair.items():
            pair[key] = pair.get(key, np.zeros_like(table)) + stride * table
        stride *= lattice.top + 1
    return _Steps(
        tuple(s.tolist() for s in single), {k: t.tolist() for k, t in pair.items()}, stride
    )


def _windows(
    lattices: Sequence[_Lattice], bounds: Sequence[tuple[float, float, float]]
) -> list[tuple[int, int]]:
    """Runs of packed sums within all bounds, ascending: one for each sum of all costs but one."""
    ends = [x.window(*b) for x, b in zip(lattices, bounds, strict=True)]
    runs = [ends[0]] if ends[0][0] <= ends[0][1] else []
    stride = lattices[0].top + 1
    for lattice, (low, high) in zip(lattices[1:], ends[1:], strict=True):
        runs = [(k * stride + a, k * stride + b) for k in range(low, high + 1) for a, b in runs]
        stride *= lattice.top + 1
    return runs
