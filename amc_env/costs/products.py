"""Costs as sums of products: what makes thousands of plans cheap to ask about.

Multiply-adds are an input width times an output width, bytes of quantized layers that times bits:
sums over layers of products of a few affine functions of the values. On the grid such sums are
whole multiples of a unit, so that every way to add them up gives the same number once it is rounded
to the unit, the one that the cost model itself answers.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from amc_env.plan import Decision

Array = npt.NDArray[np.float64]

_WHOLE = 1e-15  # how near to a whole number a width is one: a size times a part of it
_EXACT = 0.25  # of a unit: rounding errors below it vanish
_N_CHECKS = 8
_CHUNK = 2_000_000  # numbers at once


class Affine(NamedTuple):
    """``matrix @ values + offset``: one number per row.

    Args:
        matrix: Shape ``(rows, n_decisions)``.
        offset: Shape ``(rows,)``.
    """

    matrix: Array
    offset: Array


class Block(NamedTuple):
    """``sum(weights * factor * factor ...)`` over rows.

    Args:
        weights: Shape ``(rows,)``.
        factors: What is multiplied, each with as many rows.
    """

    weights: Array
    factors: tuple[Affine, ...]


@dataclass(frozen=True)
class ProductForm:
    """``cost = round(parts * (constant + sum of blocks)) / divisor`` for plans on the grid.

    Args:
        blocks: The products.
        constant: What no decision changes.
        parts: The unit is ``1 / parts``.
        divisor: What the whole number of units is divided by.
    """

    blocks: tuple[Block, ...]
    constant: float = 0.0
    parts: int = 1
    divisor: float = 1.0

    def is_whole(self, decisions: Sequence[Decision]) -> bool:
        """Whether the sum is a whole number of units for every plan on the grid."""
        if not _are_whole(np.array([self.constant * self.parts])):
            return False
        for weights, factors in self.blocks:
            used = weights != 0.0
            scaled = weights[used] * self.parts
            for matrix, offset in factors:
                scale = _whole_scale(matrix[used], offset[used], decisions, self.parts)
                if scale is None:
                    return False
                scaled = scaled / scale
            if not _are_whole(scaled):
                return False
        return True

    def is_rising(self, decisions: Sequence[Decision]) -> bool:
        """Whether nothing that is added or multiplied is below 0, so that nothing ever falls."""
        arrays = [weights for weights, _ in self.blocks]
        arrays += [part for _, factors in self.blocks for factor in factors for part in factor]
        lowest = min((d.choices[0] for d in decisions), default=0.0)
        return min(lowest, self.constant, *(float(a.min(initial=0.0)) for a in arrays)) >= 0.0


class SummedCost(Protocol):
    """A cost model that may be a sum of products."""

    def __call__(self, values: Sequence[float] | Array) -> float:
        """Returns the cost of a plan."""

    def products(self) -> ProductForm | None:
        """Returns the form, if it has one."""


def _are_whole(numbers: Array) -> bool:
    nearest = np.rint(numbers)
    return bool((np.abs(numbers - nearest) <= _WHOLE * np.maximum(1.0, np.abs(nearest))).all())


def _whole_scale(
    matrix: Array, offset: Array, decisions: Sequence[Decision], parts: int
) -> int | None:
    """By what the numbers of a factor have to be multiplied to be whole on the grid, if anything.

    Of a channel's width that is 1, of a density the parts that its grid has.
    """
    moved = np.flatnonzero(matrix.any(axis=0)).tolist()
    columns = [np.unique(matrix[:, j])[:, None] * np.array(decisions[j].choices) for j in moved]
    numbers = np.concatenate([offset, *(column.ravel() for column in columns)])
    return next((scale for scale in (1, parts) if _are_whole(numbers * scale)), None)


class _Terms:
    """Collects the products of several costs, with what is constant or linear put together."""

    def __init__(self, n_costs: int, n_decisions: int) -> None:
        self.constant = np.zeros(n_costs)
        self.linear = np.zeros((n_costs, n_decisions))
        self.rows: list[tuple[int, float, list[tuple[Array, float]]]] = []

    def add(self, cost: int, form: ProductForm) -> None:
        self.constant[cost] += form.constant
        for weights, factors in form.blocks:
            for row, weight in enumerate(weights):
                moving = []
                for matrix, offset in factors:
                    if matrix[row].any():
                        moving.append((matrix[row], float(offset[row])))
                    else:
                        weight = weight * offset[row]
                if weight != 0.0:
                    self._add_row(cost, float(weight), moving)

    def _add_row(self, cost: int, weight: float, moving: list[tuple[Array, float]]) -> None:
        if len(moving) > 1:
            self.rows.append((cost, weight, moving))
            return
        self.constant[cost] += weight * (moving[0][1] if moving else 1.0)
        if moving:
            self.linear[cost] += weight * moving[0][0]

    def finished(self) -> _Products:
        n_factors = max([1, *(len(moving) for _, _, moving in self.rows)])
        n_values = max([1, *(int(np.count_nonzero(x)) for _, _, m in self.rows for x, _ in m)])
        shape = (n_factors, len(self.rows) + 1)
        columns = np.zeros((*shape, n_values), dtype=np.intp)
        slopes, offset = np.zeros((*shape, n_values)), np.ones(shape)
        weights = np.zeros((len(self.constant), shape[1]))
        weights[:, -1] = self.constant
        for t, (cost, weight, moving) in enumerate(self.rows):
            weights[cost, t] = weight
            for f, (row, base) in enumerate(moving):
                used = np.flatnonzero(row)
                columns[f, t, : len(used)] = used
                slopes[f, t, : len(used)] = row[used]
                offset[f, t] = base
        return _Products(columns, slopes, offset, weights, self.linear)


class _Products(NamedTuple):
    """Several costs as sums of products; the last term is the constant.

    Args:
        columns: Decisions that a factor depends on, shape ``(n_factors, n_terms, n_values)``.
        slopes: By how much, likewise; 0 fills up.
        offset: Of the factors, shape ``(n_factors, n_terms)``; a term has 1 for factors it lacks.
        weights: Of the terms, shape ``(n_costs, n_terms)``.
        linear: What is linear, shape ``(n_costs, n_decisions)``.
    """

    columns: npt.NDArray[np.intp]
    slopes: Array
    offset: Array
    weights: Array
    linear: Array

    def at(self, values: Array) -> Array:
        """Returns the sums, shape ``(n_plans, n_costs)``."""
        moved = values.take(self.columns, axis=1)
        factors = np.einsum("mftv,ftv->fmt", moved, self.slopes) + self.offset[:, None]
        total: Array = product(factors) @ self.weights.T + values @ self.linear.T
        return total

    def dense(self) -> tuple[Array, Array, Array]:
        """Returns factors as matrix and offset, and weights; what is linear is a term, too."""
        n_factors, n_terms, n_values = self.columns.shape
        n_costs, n = self.linear.shape
        linear = np.flatnonzero(self.linear.any(axis=1))
        matrix = np.zeros((n_factors, n_terms + len(linear), n))
        rows, terms = np.ogrid[:n_factors, :n_terms]
        for k in range(n_values):
            matrix[rows, terms, self.columns[..., k]] += self.slopes[..., k]
        offset = np.ones((n_factors, n_terms + len(linear)))
        offset[:, :n_terms] = self.offset
        weights = np.zeros((n_costs, n_terms + len(linear)))
        weights[:, :n_terms] = self.weights
        for t, cost in enumerate(linear, start=n_terms):
            matrix[0, t], offset[0, t], weights[cost, t] = self.linear[cost], 0.0, 1.0
        return matrix, offset, weights


def product(factors: Array) -> Array:
    """Returns the product over the first axis."""
    return functools.reduce(operator.mul, factors)


def _some_plans(decisions: Sequence[Decision]) -> Array:
    """The smallest plan, the largest one, and random ones, shape ``(n_plans, n_decisions)``."""
    share = np.random.default_rng(0).random((_N_CHECKS, len(decisions)))
    share[0], share[1] = 0.0, 1.0 - 2.0**-53
    grids = [np.array(d.choices) for d in decisions]
    columns = [
        grid[(x * len(grid)).astype(np.intp)] for grid, x in zip(grids, share.T, strict=True)
    ]
    return np.stack(columns, axis=1)


class CostSums:
    """Several costs of product form at once. Make one by :meth:`build`.

    Args:
        forms: Cost name -> its form.
        decisions: All decisions in order.

    Attributes:
        names: Of the costs, in order.
        parts, divisor: As in :class:`ProductForm`, shape ``(n_costs,)``.
    """

    def __init__(self, forms: Mapping[str, ProductForm], decisions: Sequence[Decision]) -> None:
        self.names = tuple(forms)
        self.forms = dict(forms)
        self.decisions = tuple(decisions)
        terms = _Terms(len(forms), len(decisions))
        for cost, form in enumerate(forms.values()):
            terms.add(cost, form)
        self._products = terms.finished()
        self._some: dict[tuple[str, ...], Self] = {}
        self.parts: Array = np.array([f.parts for f in forms.values()], dtype=np.float64)
        self.divisor: Array = np.array([f.divisor for f in forms.values()], dtype=np.float64)

    @classmethod
    def build(cls, costs: Mapping[str, SummedCost], decisions: Sequence[Decision]) -> Self:
        """Returns the sums of those costs that are some; others are left out.

        A cost that answers otherwise for some random plan is none.

        Args:
            costs: Cost name -> cost model.
            decisions: All decisions in order.
        """
        forms: dict[str, ProductForm] = {}
        for name, cost in costs.items():
            form = cost.products() if decisions else None
            if form is not None and form.is_rising(decisions) and form.is_whole(decisions):
                forms[name] = form
        sums = cls(forms, decisions)
        if not sums.names:
            return sums
        values, n = _some_plans(decisions), len(decisions)
        found, right = sums.at(values), []
        for name, column, divisor in zip(sums.names, found.T, sums.divisor, strict=True):
            rounding = column.max() * divisor * 2.0**-52 * (64 + n + sums.n_terms)
            answers = [costs[name](row) for row in values]
            if rounding <= _EXACT and answers == column.tolist():
                right.append(name)
        return sums.of(right)

    def of(self, names: Sequence[str]) -> Self:
        """Returns the sums of some of the costs."""
        if (key := tuple(names)) == self.names:
            return self
        if key not in self._some:
            forms = {name: self.forms[name] for name in names}
            self._some[key] = type(self)(forms, self.decisions)
        return self._some[key]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Returns the same one: nothing changes it."""
        return self

    def at(self, values: Array) -> Array:
        """Returns the costs of plans on the grid, equal to what the cost models answer.

        Args:
            values: Shape ``(n_plans, n_decisions)``.

        Returns:
            Shape ``(n_plans, n_costs)``.
        """
        rounded: Array = np.rint(self.raw(values) * self.parts) / self.divisor
        return rounded

    def of_plan(self, values: Sequence[float]) -> dict[str, float]:
        """Returns the costs of one plan on the grid by name."""
        costs = self.at(np.array([values], dtype=np.float64))[0].tolist()
        return dict(zip(self.names, costs, strict=True))

    def raw(self, values: Array) -> Array:
        """Returns the sums, for values on the grid or not, unrounded: shape ``(plans, costs)``."""
        if not self.names:
            return np.zeros((len(values), 0))
        size = max(1, _CHUNK // max(1, self._products.columns.size))
        if len(values) > size:
            parts = [self.raw(values[k : k + size]) for k in range(0, len(values), size)]
            return np.concatenate(parts)
        return self._products.at(values)

    @property
    def n_terms(self) -> int:
        """How many products there are."""
        return len(self._products.weights[0]) if self.names else 0

    @property
    def n_numbers(self) -> int:
        """How many numbers :meth:`dense` has."""
        return self._products.offset.size * len(self.decisions)

    def dense(self) -> tuple[Array, Array, Array]:
        """Returns the costs as one product of affine functions per term.

        Returns:
            Matrix of the factors, shape ``(n_factors, n_terms, n_decisions)``, their offset, shape
            ``(n_factors, n_terms)``, and the weights of the terms, shape ``(n_costs, n_terms)``.
        """
        return self._products.dense()
