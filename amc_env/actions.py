"""Action mappings: what an action in [0, 1] asks for, and the inverses.

A mapping turns an action into a requested value; the feasible set then snaps the request onto
the grid. ``encode`` gives back the action that means the executed value, which is what a replay
buffer should store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amc_env.budgets.budget import Bounds


@dataclass(frozen=True)
class MappingContext:
    """What an action mapping may depend on.

    Args:
        span: The scale of the decision's values, (0, 1) for ratios.
        interval: Smallest and largest feasible value.
        balanced: The value that, given to every remaining decision, spends what is left.
    """

    span: Bounds
    interval: Bounds
    balanced: float


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
