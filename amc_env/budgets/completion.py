"""Completion of partial plans within the budget.

Costs are monotone in every decision, so a box of plans is bounded by its smallest and largest
corner; a branch-and-bound over boxes decides exactly whether a partial plan can be completed. Where
it does not end within its limit, a table of all sums decides (``window_table``), if costs
are sums.

A cost that falls somewhere (see ``entered_cost``) is bounded by its terms instead of its
corners, or not at all. That concerns only what is found: a plan is within the budget because its
true cost was asked.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from amc_env.budgets.window_table import WindowTable
from amc_env.costs.cost_terms import CostTerms
from amc_env.plan import Decision

# Bounds the time of one completion query (about half a second). A query that hits it answers
# "cannot be completed", which narrows the choice but never lets a plan break the budget. Where many
# decisions are left a box takes longer, and branching to the end is hopeless anyway.
MAX_BOXES = 20_000
_DECISIONS_PER_SHARE = 16
_MAX_REPAIRS = 4_000
_MARGIN = 0.25
_LOOSE_SHARE = 8  # bounds by terms take that many times longer than corners
_SLACK = 1e-6  # of the original cost: how exactly terms are read off a cost


class CompletionSearch:
    """Finds plans within bounds; equal questions have equal answers.

    Args:
        bounds: Cost name -> lower and upper bound of its ratio.
        decisions: All decisions in order.
        ratio: Name and complete values -> cost / original cost.
        falling: Names of the costs that are not monotone -> their terms and the original cost.
        make_table: Makes the table that decides where a search does not end, None if it cannot.

    Attributes:
        given_up: Prefixes whose search hit its limit.
    """

    def __init__(
        self,
        bounds: Mapping[str, tuple[float, float]],
        decisions: Sequence[Decision],
        ratio: Callable[[str, np.ndarray], float],
        falling: Mapping[str, tuple[CostTerms, float]],
        make_table: Callable[[], WindowTable | None],
    ) -> None:
        self._bounds = dict(bounds)
        self._ratio = ratio
        self._falling = dict(falling)
        self._make_table = make_table
        self._table: WindowTable | None = None
        self._is_tabled = False
        self.given_up: set[tuple[float, ...]] = set()
        self._grids = [np.array(d.choices) for d in decisions]
        self._lowest = np.array([g[0] for g in self._grids])
        self._highest = np.array([g[-1] for g in self._grids])
        self._rows = np.arange(len(self._grids))
        self._grid = np.zeros((len(self._grids), max([len(g) for g in self._grids], default=0)))
        for row, grid in zip(self._grid, self._grids, strict=True):
            row[: len(grid)] = grid
        self._moved_costs = np.array([self._count_moved_costs(i) for i in range(len(self._grids))])

    @property
    def is_tabled(self) -> bool:
        """Whether a table of sums answers from now on."""
        return self._table is not None

    def _count_moved_costs(self, index: int) -> int:
        """Number of bounded costs that a decision changes."""
        values = self._highest.copy()
        values[index] = self._lowest[index]
        return sum(self._ratio(n, values) < self._ratio(n, self._highest) for n in self._bounds)

    def find(
        self, prefix: tuple[float, ...], near: tuple[float, ...] | None
    ) -> tuple[float, ...] | None:
        """Returns a plan that begins with ``prefix`` and meets every bound, None if there is none.

        Args:
            prefix: What is decided.
            near: A plan within the budget that differs in the last of these values, if known.
        """
        if self._table is not None:
            return self._look_up(prefix)
        n = len(prefix)
        first = np.zeros(len(self._grids), dtype=int)
        last = np.array([len(g) - 1 for g in self._grids], dtype=int)
        first[:n] = last[:n] = self._indices(prefix)
        fixed = np.asarray(prefix, dtype=float)
        stack = [(first, last)]
        weights = self._moved_costs[n:] * (self._grid.shape[1] + 1)
        shares = (1 + (len(self._grids) - n) // _DECISIONS_PER_SHARE) ** 2
        limit = MAX_BOXES // (shares * (_LOOSE_SHARE if self._falling else 1))
        for boxes in range(max(1, limit)):
            if not stack:
                return None
            box_first, box_last = stack.pop()
            verdict = self._assess_box(fixed, n, box_first, box_last)
            if verdict is None and boxes == 0:
                verdict = self._repair(fixed, n, (first + last) // 2, near)
            if isinstance(verdict, np.ndarray):
                return tuple(verdict.tolist())
            if verdict is False:
                continue
            # What moves all costs (channels) before what moves some (bits): the rest is then easy.
            steps = (box_last - box_first)[n:]
            first_split = n + int(np.argmax(np.where(steps > 0, steps + weights, 0)))
            middle = int(box_first[first_split] + box_last[first_split]) // 2
            upper_first, lower_last = box_first.copy(), box_last.copy()
            upper_first[first_split], lower_last[first_split] = middle + 1, middle
            stack.append((upper_first, box_last))
            stack.append((box_first, lower_last))
        if not stack:
            return None
        if self._has_table():
            return self._look_up(prefix)
        self.given_up.add(prefix)
        return None

    def _indices(self, values: Sequence[float]) -> list[int]:
        pairs = zip(self._grids, values, strict=False)
        return [int(np.searchsorted(grid, value)) for grid, value in pairs]

    def _has_table(self) -> bool:
        """Makes the table of sums at the first search that does not end; whether there is one."""
        if not self._is_tabled:
            self._is_tabled = True
            self._table = self._make_table()
        return self._table is not None

    def _look_up(self, prefix: tuple[float, ...]) -> tuple[float, ...] | None:
        assert self._table is not None
        found = self._table.complete(self._indices(prefix))
        if found is None:
            return None
        values = self._corner(np.asarray(prefix, dtype=float), len(prefix), np.array(found))
        if all(lo <= self._ratio(n, values) <= hi for n, (lo, hi) in self._bounds.items()):
            return tuple(values.tolist())
        self.given_up.add(prefix)  # a cost that is not quite a multiple: nothing is proved
        return None

    def _assess_box(
        self, fixed: np.ndarray, n: int, first: np.ndarray, last: np.ndarray
    ) -> np.ndarray | bool | None:
        """A feasible corner; False if nothing inside can be feasible; None: split further."""
        low, high = self._corner(fixed, n, first), self._corner(fixed, n, last)
        low_fits = high_fits = True
        for name, (lower, upper) in self._bounds.items():
            low_ratio, high_ratio = self._ratio(name, low), self._ratio(name, high)
            least, most = low_ratio, high_ratio
            if name in self._falling:
                least, most = _bounds_of(*self._falling[name], first, last)
            if least > upper or most < lower:
                return False
            low_fits &= lower <= low_ratio <= upper
            high_fits &= lower <= high_ratio <= upper
        if low_fits or high_fits:
            return low if low_fits else high
        return False if bool((first[n:] == last[n:]).all()) else None

    def _corner(self, fixed: np.ndarray, n: int, index: np.ndarray) -> np.ndarray:
        corner: np.ndarray = self._grid[self._rows, index]
        corner[:n] = fixed
        return corner

    def _repair(
        self, fixed: np.ndarray, n: int, start: np.ndarray, near: tuple[float, ...] | None
    ) -> np.ndarray | None:
        """Reaches the budget by single grid steps, each closer; None if it gets stuck.

        Windows on several costs leave so few plans in so many boxes that branching alone may not
        find one; walking finds it in a few sweeps.
        """
        index = start.copy()
        if near is not None:
            index[n:] = [
                np.searchsorted(g, v) for g, v in zip(self._grids[n:], near[n:], strict=True)
            ]
        values = self._corner(fixed, n, index)
        distance, tries, moved = self._distance(values), 0, True
        while moved and tries < _MAX_REPAIRS:
            moved = False
            for i in range(n, len(index)):
                for step in (-1, 1):
                    if distance == 0.0:
                        return values
                    reached = self._walk(values, index, i, step, distance)
                    tries += 1
                    moved |= reached < distance
                    distance = reached
        return values if distance == 0.0 else None

    def _walk(
        self, values: np.ndarray, index: np.ndarray, i: int, step: int, distance: float
    ) -> float:
        """Moves one decision along its grid as long as that helps; returns the distance left."""
        while distance > 0.0 and 0 <= index[i] + step < len(self._grids[i]):
            values[i] = self._grids[i][index[i] + step]
            reached = self._distance(values)
            if reached >= distance:
                values[i] = self._grids[i][index[i]]
                break
            index[i] += step
            distance = reached
        return distance

    def _distance(self, values: np.ndarray) -> float:
        """0 inside the bounds; outside, the squared distance to their middle.

        The square is flat at the middle, so that one cost gives way a little for another.
        """
        inside, total = True, 0.0
        for name, (lower, upper) in self._bounds.items():
            ratio = self._ratio(name, values)
            inside &= lower <= ratio <= upper
            margin = _MARGIN * (upper - lower)
            low = lower + margin if lower > 0.0 else 0.0
            total += (max(0.0, low - ratio, ratio - (upper - margin)) / upper) ** 2
        return 0.0 if inside else total


def _bounds_of(
    terms: CostTerms, original: float, first: np.ndarray, last: np.ndarray
) -> tuple[float, float]:
    """Bounds on the ratios of all plans in a box; unbounded if the cost is no sum of terms."""
    if not terms.is_exact:
        return -np.inf, np.inf
    parts = [s[a : b + 1] for s, a, b in zip(terms.single, first, last, strict=True)]
    parts += [
        both[first[i] : last[i] + 1, first[j] : last[j] + 1] for (i, j), both in terms.pair.items()
    ]
    least = terms.constant + sum(float(part.min()) for part in parts)
    most = terms.constant + sum(float(part.max()) for part in parts)
    return least / original - _SLACK, most / original + _SLACK
