"""The budget along one plan: exact costs of the next choices without asking the cost models."""

from __future__ import annotations

import bisect
import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from amc_env.budgets.balance import WITHIN, Balance, Doubt
from amc_env.budgets.budget import Bounds
from amc_env.budgets.walk import Line, Walk
from amc_env.costs.products import Array, CostSums
from amc_env.plan import Decision

Truth = npt.NDArray[np.bool_]

_EXACT_REQUESTS = 1e3  # differences to larger ones may be rounded to equal ones


class Units(NamedTuple):
    """How the sum of a cost becomes a ratio.

    Args:
        parts, divisor: See :class:`~amc_env.costs.products.ProductForm`.
        original: What ratios refer to.
    """

    parts: float
    divisor: float
    original: float

    def ratio(self, total: float) -> float:
        """Returns cost / original cost of a plan on the grid."""
        return round(total * self.parts) / self.divisor / self.original


class Windows:
    """The bounds of the costs of product form, and which of a decision's choices are within them.

    Args:
        sums: The costs.
        decisions: All decisions in order.
        bounds: Cost name -> smallest and largest ratio.
        original: Cost name -> what ratios refer to.
    """

    def __init__(
        self,
        sums: CostSums,
        decisions: Sequence[Decision],
        bounds: Mapping[str, Bounds],
        original: Mapping[str, float],
    ) -> None:
        self.units = {
            name: Units(float(parts), float(divisor), original[name])
            for name, parts, divisor in zip(sums.names, sums.parts, sums.divisor, strict=True)
        }
        self.line = Line(sums, decisions)
        self.original: Array = np.array([original[name] for name in sums.names])[:, None, None]
        self.lowers = [float(bounds[name][0]) for name in sums.names]
        self.uppers = [float(bounds[name][1]) for name in sums.names]
        self.lower: Array = np.array(self.lowers)[:, None, None]
        self.upper: Array = np.array(self.uppers)[:, None, None]
        self.is_open_below = not self.lower.any()
        self.n_ends = 1 if self.is_open_below else 2
        self.balance = Balance(self.line, (self.upper * self.original).ravel().tolist())

    def __deepcopy__(self, memo: dict[int, object]) -> Windows:
        """Returns the same ones: what they keep does not depend on who asks."""
        return self

    def are_met(self, ratios: Mapping[str, Bounds]) -> bool:
        """Whether the smallest, or the largest, of everything that is left meets all bounds.

        Args:
            ratios: Of both, by cost.
        """
        if self.is_open_below:
            return all(low <= u for (low, _), u in zip(ratios.values(), self.uppers, strict=True))
        limits = list(zip(ratios.values(), self.lowers, self.uppers, strict=True))
        return any(all(lower <= r[end] <= upper for r, lower, upper in limits) for end in (0, 1))

    def decided(self, costs: Array) -> tuple[Truth, Truth | None]:
        """Returns which choices can be completed, and of which that is not known.

        It is known where completing with the smallest, or the largest, of everything meets all
        bounds, and where nothing in between can.

        Args:
            costs: With the rest at its smallest and, where there are lower bounds, at its largest,
                shape ``(n_costs, count, n_ends, n_choices)``.

        Returns:
            Two arrays of truth values, shape ``(count, n_choices)``; None where all is known.
        """
        ratios = costs / self.original[..., None]
        low_fits = ratios[:, :, 0] <= self.upper
        if self.is_open_below:  # what is not too expensive at its smallest is within
            return _all(low_fits), None
        high_fits = ratios[:, :, 1] >= self.lower
        possible = _all(low_fits & high_fits)
        fits = _all(low_fits & (ratios[:, :, 0] >= self.lower))
        fits |= _all(high_fits & (ratios[:, :, 1] <= self.upper))
        return fits, possible & ~fits


def _all(found: Truth) -> Truth:
    """Whether it is true of all costs."""
    of_all: Truth = np.logical_and.reduce(found, axis=0)
    return of_all


@dataclass(slots=True)
class _Known:
    """What is known about the plans that begin with a prefix; None is not asked for yet.

    Args:
        ratios: Per cost the ratios with the rest at its smallest and at its largest.
        ends: The sums of these, in the order of the costs.
        feasible: Choices from which the budget can be met.
        doubt: Where the line through the rest leaves the budget.
    """

    ratios: dict[str, Bounds] | None = None
    ends: list[list[float]] = field(default_factory=list)
    feasible: tuple[float, ...] | None = None
    doubt: Doubt | None = None


class Followed:
    """One plan on its way. Questions about a prefix that goes on where the last one was are cheap.

    Args:
        windows: The bounds.
        decisions: All decisions in order.

    Attributes:
        windows: As given.
    """

    def __init__(self, windows: Windows, decisions: Sequence[Decision]) -> None:
        self.windows = windows
        self._decisions = tuple(decisions)
        self._choices = [d.choices for d in decisions]
        self._legal = [frozenset(d.choices) for d in decisions]
        self._units = list(windows.units.items())
        self._values: list[float] = []
        self._walk = Walk(windows.line)
        self._at_start = self._known = _Known()

    def __reduce__(self) -> tuple[type[Followed], tuple[Windows, tuple[Decision, ...]]]:
        """Returns how to make another one, which has not followed anything yet."""
        return Followed, (self.windows, self._decisions)

    def go_to(self, prefix: Sequence[float]) -> bool:
        """Follows a prefix; whether that was possible: not off the grid, nor to the very end."""
        values = prefix if type(prefix) is list else [*prefix]
        if values == self._values:
            return True
        made = len(self._values)
        if len(values) >= len(self._choices):
            return False
        if values[:made] != self._values:
            self._walk.restart()
            self._values, self._known, made = [], self._at_start, 0
        for value in values[made:]:
            if value not in self._legal[len(self._values)]:
                return False
            self._walk.take(value)
            self._values.append(value)
            self._known = _Known()
        return True

    def ratios(self) -> dict[str, Bounds]:
        """Returns per cost the ratios with the rest at its smallest and at its largest."""
        if self._known.ratios is None:
            self._known.ends = self._walk.ends[:, 0].tolist()
            self._known.ratios = {
                name: (units.ratio(low), units.ratio(high))
                for (name, units), (low, high) in zip(self._units, self._known.ends, strict=True)
            }
        return self._known.ratios

    def feasible(self) -> tuple[float, ...]:
        """Returns the choices from which the budget can be met; none if that is not known."""
        if self._known.feasible is None:
            is_met = self.windows.are_met(self.ratios())
            self._known.feasible = self._find_feasible() if is_met else ()
        return self._known.feasible

    def _find_feasible(self) -> tuple[float, ...]:
        choices = self._choices[len(self._values)]
        if self.windows.is_open_below:
            return choices[: self._count_cheap(choices)]
        fits, unknown = self.windows.decided(self._walk.costs(self.windows.n_ends))
        if unknown is None or unknown.any():
            return ()
        return tuple(c for c, fit in zip(choices, fits[0].tolist(), strict=True) if fit)

    def _count_cheap(self, choices: Sequence[float]) -> int:
        """How many choices are within the bounds with the rest at its smallest; the first one is.

        Costs rise with each choice.
        """
        move = self.windows.line.move(len(self._values))
        factors = self._walk.lowest(move.terms)
        terms = list(map(_expanded, factors, move.slope_rows))
        by_power = list(zip(*terms, strict=True)) or [()]
        count = len(choices)
        for k, (_, units) in enumerate(self._units):
            weights = move.weight_rows[k]
            powers = [sum(map(operator.mul, weights, each)) for each in by_power]
            powers[0] = self._known.ends[k][0]
            count = _count_within(choices[:count], powers, units, self.windows.uppers[k])
        return count

    def largest_fits(self) -> bool:
        """Whether no upper bound is broken with the rest at its largest."""
        pairs = zip(self.ratios().values(), self.windows.uppers, strict=True)
        return all(high <= upper for (_, high), upper in pairs)

    def doubt(self) -> Doubt:
        """Returns what is known of where the line through the rest leaves the budget."""
        if self._known.doubt is None:
            totals = self._walk.totals[:, 0]
            within = self.largest_fits()
            self._known.doubt = WITHIN if within else self.windows.balance.doubt(totals)
        return self._known.doubt


def _count_within(
    choices: Sequence[float], powers: Sequence[float], units: Units, upper: float
) -> int:
    """How many choices cost at most ``upper``, a polynomial of the difference to the first one."""
    first, falling = choices[0], powers[::-1]

    def breaks(choice: float) -> bool:
        total, change = 0.0, choice - first
        for power in falling:
            total = total * change + power
        return units.ratio(total) > upper

    if not breaks(choices[-1]):
        return len(choices)
    return bisect.bisect_left(choices, True, 1, len(choices) - 1, key=breaks)


def _expanded(factors: Sequence[float], slopes: Sequence[float]) -> list[float]:
    """Coefficients of the product of ``factor + slope * x``."""
    if len(factors) == 2:  # the usual one
        (a, b), (c, d) = factors, slopes
        return [a * b, a * d + b * c, c * d]
    powers, constant = [1.0], 1.0
    for factor, slope in zip(factors, slopes, strict=True):
        if slope == 0.0:  # most factors do not depend on the decision
            constant *= factor
        else:
            by_x = [slope * power for power in powers]
            powers = [factor * power for power in powers]
            powers = [powers[0], *map(operator.add, powers[1:], by_x[:-1]), by_x[-1]]
    powers = [constant * power for power in powers]
    return powers + [0.0] * (len(factors) + 1 - len(powers))


def nearest_of(choices: Sequence[float], request: float) -> float:
    """Returns the nearest of ascending choices; of two equally near ones the larger."""
    if not -_EXACT_REQUESTS < request < _EXACT_REQUESTS:
        return min(choices, key=lambda c: (abs(c - request), -c))
    right = bisect.bisect_left(choices, request)
    around = choices[max(0, right - 1) : right + 1]
    return around[0] if abs(around[0] - request) < abs(around[-1] - request) else around[-1]
