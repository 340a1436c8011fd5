"""Action mappings: what an action in [0, 1] asks for, and the inverses.

A mapping turns an action into a requested value; the feasible set then snaps the request onto
the grid. ``encode`` gives back the action that means the executed value, which is what a replay
buffer should store.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from amc_env.budgets.budget import Bounds, value_span
from amc_env.budgets.feasible import FeasibleSet
from amc_env.budgets.followed import nearest_of
from amc_env.plan import Decision


class MappingContext(NamedTuple):
    """What an action mapping may depend on.

    Args:
        span: The scale of the decision's values, (0, 1) for ratios.
        interval: Smallest and largest feasible value.
        balanced: The value that, given to every remaining decision, spends what is left.
        choices: The feasible ones, ascending; none if it takes a search to know them.
    """

    span: Bounds
    interval: Bounds
    balanced: float
    choices: Sequence[float] = ()


@dataclass(frozen=True)
class ActionMapping:
    """A pair of inverse maps between an action in [0, 1] and a decision's value."""

    decode: Callable[[float, MappingContext], float]
    encode: Callable[[float, MappingContext], float]


def _position(value: float, low: float, high: float) -> float:
    """Relative position of ``value`` in [low, high]; 0.5 in an empty interval."""
    if high <= low:
        return 0.5
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _decode_absolute(action: float, context: MappingContext) -> float:
    low, high = context.span
    return low + action * (high - low)


def _encode_absolute(value: float, context: MappingContext) -> float:
    return _position(value, *context.span)


def _decode_interval(action: float, context: MappingContext) -> float:
    low, high = context.interval
    return low + action * (high - low)


def _encode_interval(value: float, context: MappingContext) -> float:
    return _position(value, *context.interval)


def _centre(context: MappingContext) -> float:
    low, high = context.interval
    return min(high, max(low, context.balanced))


def _decode_centred(action: float, context: MappingContext) -> float:
    low, high = context.interval
    centre = _centre(context)
    if action <= 0.5:
        return low + 2 * action * (centre - low)
    return centre + (2 * action - 1) * (high - centre)


def _encode_centred(value: float, context: MappingContext) -> float:
    low, high = context.interval
    centre = _centre(context)
    if value == centre:
        return 0.5
    if value < centre:
        return 0.5 * _position(value, low, centre)
    return 0.5 + 0.5 * _position(value, centre, high)


ACTION_MAPPINGS: dict[str, ActionMapping] = {
    "absolute": ActionMapping(_decode_absolute, _encode_absolute),
    "interval": ActionMapping(_decode_interval, _encode_interval),
    "centred": ActionMapping(_decode_centred, _encode_centred),
}
"""Action mapping name -> maps: the value itself; the position in the feasible interval; piecewise
linear with 0.5 at the balanced value (PocketFlow's mapping, made budget-relative)."""


class Translation:
    """Turns actions into values within a budget, and back.

    Args:
        mapping: What actions mean.
        feasible: The budget.
        decisions: All decisions in order.
    """

    def __init__(
        self, mapping: ActionMapping, feasible: FeasibleSet, decisions: Sequence[Decision]
    ) -> None:
        self._mapping = mapping
        self._feasible = feasible
        self._decisions = tuple(decisions)
        self._spans = [value_span(d) for d in decisions]

    def context(self, prefix: Sequence[float]) -> MappingContext:
        """Returns what an action depends on after some decisions."""
        return self._context(len(prefix), *self._feasible.outlook(prefix))

    def _context(
        self, index: int, interval: Bounds, ratio: float, choices: Sequence[float] = ()
    ) -> MappingContext:
        low, high = span = self._spans[index]
        return MappingContext(span, interval, low + ratio * (high - low), choices)

    def value(self, prefix: Sequence[float], action: float, context: MappingContext) -> float:
        """Returns the feasible value that an action means."""
        request = self._mapping.decode(action, context)
        if context.choices:
            return nearest_of(context.choices, request)
        return self._feasible.nearest(prefix, request)

    def action(self, value: float, context: MappingContext) -> float:
        """Returns the action that means a value."""
        return self._mapping.encode(value, context)

    def values(self, actions: Sequence[float]) -> list[float]:
        """Returns the values of an episode with these actions."""
        values: list[float] = []
        for action in actions:
            values.append(self.value(values, action, self.context(values)))
        return values

    def all_values(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """Returns the values of many episodes, one per row of actions."""

        def request(action: float, index: int, interval: Bounds, ratio: float) -> float:
            return self._mapping.decode(action, self._context(index, interval, ratio))

        return self._feasible.choose(rows, request)

    def projected(self, rows: Sequence[Sequence[float]]) -> list[list[float]]:
        """Returns the feasible values nearest to many rows of values, decision by decision."""
        pairs = [zip(self._decisions, row, strict=True) for row in rows]
        found = [[d.nearest(value) for d, value in pair] for pair in pairs]
        # If all bounds are met, every one of them is the nearest feasible one.
        far = [k for k, row in enumerate(found) if not self._feasible.is_met(row)]
        for k, row in zip(far, self._feasible.choose([rows[k] for k in far]), strict=True):
            found[k] = row
        return found

    def balanced_values(self) -> list[float]:
        """Returns the values of the plan in which each decision takes the balanced ratio."""
        values: list[float] = []
        for low, high in self._spans:
            request = low + self._feasible.balanced(values) * (high - low)
            values.append(self._feasible.nearest(values, request))
        return values
