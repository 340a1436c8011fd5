"""What plans cost while their decisions are made one after the other, many plans at a time.

The costs of product form (``amc_env.costs.products``) are followed at some points of one line: the
plans in which every open decision takes the share ``r`` of its span, from all at their smallest
(``r = 0``) to all at their largest (``r = 1``). A decision changes only the terms that it is part
of, so a step costs the same however many decisions there are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amc_env.budgets.budget import value_span
from amc_env.costs.products import Array, CostSums, product
from amc_env.plan import Decision

Index = npt.NDArray[np.intp]

MOST_NUMBERS = 4_000_000
"""Of a table: 32 MB."""

_FEW_NUMBERS = 5_000  # so many are multiplied sooner than some of them are looked up


class Move(NamedTuple):
    """What a decision changes.

    Args:
        terms: Indices of the terms that it is part of.
        weights: Of those, shape ``(n_costs, terms)``.
        slopes: Of the factors by its value, shape ``(n_factors, terms)``.
        weight_rows, slope_rows: The same as lists, by cost and by term.
        all_slopes: Of the factors of all terms, shape ``(n_factors, n_terms, 1)``.
        line: Its value at each point while it is open, shape ``(n_points,)``.
        steps: Changes of the factors at both ends by its choices, shape ``(n_factors, terms, 1, 2,
            n_choices)``.
    """

    terms: Index
    weights: Array
    slopes: Array
    weight_rows: list[list[float]]
    slope_rows: list[list[float]]
    all_slopes: Array
    line: Array
    steps: Array


class Line:
    """The points at which costs are followed.

    Between two neighbouring kinks (where a decision begins, or ends, to move along the line) every
    cost is a polynomial of ``r``, whose degree is the number of factors, so that as many points
    and one more tell all of it.

    Args:
        sums: The costs.
        decisions: All decisions in order.

    Attributes:
        weights: Of the terms of the costs, shape ``(n_costs, n_terms)``.
        degree: Of the polynomials, which is the number of factors.
        n_terms: Number of products.
        kinks: From 0 to 1, ascending.
        values: Value of each decision at each point, shape ``(n_decisions, n_points)``.
    """

    def __init__(self, sums: CostSums, decisions: Sequence[Decision]) -> None:
        self.sums = sums
        matrix, self._offset, self.weights = sums.dense()
        self._matrix = np.ascontiguousarray(np.moveaxis(matrix, 2, 0))  # by decision
        self.degree, self.n_terms = self._offset.shape
        spans = np.array([value_span(d) for d in decisions])
        ends = np.array([(d.choices[0], d.choices[-1]) for d in decisions])
        length = spans[:, 1:] - spans[:, :1]
        kinks = (ends - spans[:, :1])[length[:, 0] > 0.0] / length[length[:, 0] > 0.0]
        inside = kinks[(kinks > 0.0) & (kinks < 1.0)]
        self.kinks: Array = np.unique(np.concatenate([[0.0, 1.0], inside]))
        shares = np.arange(self.degree) / self.degree
        points = self.kinks[:-1, None] + np.diff(self.kinks)[:, None] * shares
        self.points: Array = np.append(points.ravel(), 1.0)
        self.values: Array = np.clip(spans[:, :1] + self.points * length, ends[:, :1], ends[:, 1:])
        self.values[:, 0], self.values[:, -1] = ends[:, 0], ends[:, 1]
        self._decisions = tuple(decisions)
        self._moves: dict[int, Move] = {}

    @property
    def is_small(self) -> bool:
        """Whether the tables of all points fit into memory."""
        return self._offset.size * len(self.points) <= MOST_NUMBERS

    @cached_property
    def factors(self) -> Array:
        """The factors with all decisions open, shape ``(n_factors, n_terms, n_points)``."""
        moved = np.tensordot(self._matrix, self.values, axes=(0, 0))
        found: Array = moved + self._offset[..., None]
        return found

    @cached_property
    def totals(self) -> Array:
        """The sums with all decisions open, shape ``(n_costs, n_points)``."""
        found: Array = self.weights @ product(self.factors)
        return found

    def move(self, index: int) -> Move:
        """Returns what a decision changes."""
        move = self._moves.get(index)
        if move is None:
            matrix = self._matrix[index]
            terms = np.flatnonzero(matrix.any(axis=0))
            slopes = np.ascontiguousarray(matrix[:, terms])
            line = self.values[index]
            changes = np.array(self._decisions[index].choices) - line[[0, -1], None]
            weights = np.ascontiguousarray(self.weights[:, terms])
            move = self._moves[index] = Move(
                terms,
                weights,
                slopes,
                weights.tolist(),
                slopes.T.tolist(),
                matrix[..., None],
                line,
                slopes[..., None, None, None] * changes,
            )
        return move


class Walk:
    """Some plans that make the same decision at a time.

    Args:
        line: The points.
        count: How many plans.

    Attributes:
        depth: Number of decisions made.
        totals: Sums at each point, shape ``(n_costs, count, n_points)``.
    """

    def __init__(self, line: Line, count: int = 1) -> None:
        n_factors, n_terms, n_points = line.factors.shape
        self._line = line
        self._weights = line.weights
        self._parts = line.sums.parts[:, None, None]
        self._divisor = line.sums.divisor[:, None, None]
        self._factors = np.tile(line.factors, (1, 1, count))
        self._totals = np.tile(line.totals, (1, count))
        self._is_short = count == 1 and self._factors.size <= _FEW_NUMBERS
        # Views of both, which follow them.
        self.totals: Array = self._totals.reshape(-1, count, n_points)
        self._total_ends = self.totals[..., :: n_points - 1]
        self._by_plan = self._factors.reshape(n_factors, n_terms, count, n_points)
        self._factor_ends = self._by_plan[..., :: n_points - 1]
        self._smallest = self._factors[:, :, 0].T
        self.depth = 0

    def restart(self) -> None:
        """Opens all decisions again."""
        self._by_plan[:] = self._line.factors[:, :, None]
        self.totals[:] = self._line.totals[:, None]
        self.depth = 0

    @property
    def ends(self) -> Array:
        """Sums with the rest at its smallest and at its largest, shape ``(n_costs, count, 2)``."""
        return self._total_ends

    def end_costs(self) -> Array:
        """Returns the costs at both ends, exact, of the shape of :attr:`ends`."""
        costs: Array = np.rint(self._total_ends * self._parts) / self._divisor
        return costs

    def lowest(self, terms: Index) -> list[list[float]]:
        """Returns factors of the first plan with the rest at its smallest, term by term."""
        found: list[list[float]] = self._smallest.take(terms, axis=0).tolist()
        return found

    def costs(self, n_ends: int = 2) -> Array:
        """Returns what the next decision's choices cost; that is exact.

        Args:
            n_ends: 1 for all later decisions at their smallest alone; 2: and at their largest.

        Returns:
            Shape ``(n_costs, count, n_ends, n_choices)``.
        """
        move = self._line.move(self.depth)
        ends = self._factor_ends.take(move.terms, axis=1)[..., :n_ends, None]
        change = product(ends + move.steps[..., :n_ends, :]) - product(ends)
        shape = change.shape[1:]
        added = move.weights @ change.reshape(len(move.terms), math.prod(shape))
        raw = self._total_ends[..., :n_ends, None] + added.reshape(-1, *shape)
        costs: Array = np.rint(raw * self._parts[..., None]) / self._divisor[..., None]
        return costs

    def take(self, values: float | Array) -> None:
        """Makes the next decision.

        Args:
            values: The choice, or that of each plan, shape ``(count,)``.
        """
        move = self._line.move(self.depth)
        line = move.line
        moved = (
            (values[:, None] - line).ravel() if isinstance(values, np.ndarray) else values - line
        )
        self.depth += 1
        if self._is_short:
            self._factors += move.all_slopes * moved
            np.dot(self._weights, product(self._factors), out=self._totals)
            return
        factors = self._factors.take(move.terms, axis=1)
        new = factors + move.slopes[..., None] * moved
        self._totals += move.weights @ (product(new) - product(factors))
        self._factors[:, move.terms] = new
        # Rounding errors must not add up where costs are exact.
        np.divide(np.rint(self._total_ends * self._parts), self._parts, out=self._total_ends)
