"""Whether a partial plan can be completed within the budget, and how.

Costs are monotone in every decision, so a box of plans is bounded by its smallest and largest
corner; a branch-and-bound over boxes decides exactly whether a partial plan can be completed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from amc_env.plan import Decision

# Bounds the time of one completion query (about half a second). A query that hits it answers
# "cannot be completed", which narrows the choice but never lets a plan break the budget. Where many
# decisions are left a box takes longer, and branching to the end is hopeless anyway.
MAX_BOXES = 20_000
_DECISIONS_PER_SHARE = 16
_MAX_REPAIRS = 4_000
_MARGIN = 0.25


class CompletionSearch:
    """Finds plans within bounds; equal questions have equal answers.

    Args:
        bounds: Cost name -> lower and upper bound of its ratio.
        decisions: All decisions in order.
        ratio: Name and complete values -> cost / original cost.

    Attributes:
        given_up: Prefixes whose search hit its limit.
    """

    def __init__(
        self,
        bounds: Mapping[str, tuple[float, float]],
        decisions: Sequence[Decision],
        ratio: Callable[[str, np.ndarray], float],
    ) -> None:
        self._bounds = dict(bounds)
        self._ratio = ratio
        self.given_up: set[tuple[float, ...]] = set()
        self._grids = [np.array(d.choices) for d in decisions]
        self._lowest = np.array([g[0] for g in self._grids])
        self._highest = np.array([g[-1] for g in self._grids])
        self._rows = np.arange(len(self._grids))
        self._grid = np.zeros((len(self._grids), max([len(g) for g in self._grids], default=0)))
        for row, grid in zip(self._grid, self._grids, strict=True):
            row[: len(grid)] = grid
        self._moved_costs = np.array([self._count_moved_costs(i) for i in range(len(self._grids))])

    def _count_moved_costs(self, index: int) -> int:
        """How many of the bounded costs a decision moves."""
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
        n = len(prefix)
        first = np.zeros(len(self._grids), dtype=int)
        last = np.array([len(g) - 1 for g in self._grids])
        fixed = np.asarray(prefix, dtype=float)
        stack = [(first, last)]
        weights = self._moved_costs[n:] * (self._grid.shape[1] + 1)
        shares = (1 + (len(self._grids) - n) // _DECISIONS_PER_SHARE) ** 2
        for boxes in range(max(1, MAX_BOXES // shares)):
            if not stack:
                return None
            box_first, box_last = stack.pop()
            verdict = self._judge_box(fixed, n, box_first, box_last)
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
        if stack:
            self.given_up.add(prefix)
        return None

    def _judge_box(
        self, fixed: np.ndarray, n: int, first: np.ndarray, last: np.ndarray
    ) -> np.ndarray | bool | None:
        """A feasible corner; False if nothing inside can be feasible; None: split further."""
        low, high = self._corner(fixed, n, first), self._corner(fixed, n, last)
        low_fits = high_fits = True
        for name, (lower, upper) in self._bounds.items():
            low_ratio, high_ratio = self._ratio(name, low), self._ratio(name, high)
            if low_ratio > upper or high_ratio < lower:
                return False
            low_fits &= low_ratio >= lower
            high_fits &= high_ratio <= upper
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
        """Walks into the budget by single grid steps that each come nearer; None if it gets stuck.

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
