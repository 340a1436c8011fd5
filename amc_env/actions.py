"""Three readings of an action in [0, 1], and their inverses.

A reading turns what the agent asks into a wished value; the feasible set then snaps the wish onto
the grid. ``encode`` gives back the action that means the executed value, which is what a replay
buffer should store.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from amc_env.budgets.budget import Bounds


@dataclass(frozen=True)
class ReadingContext:
    """What a reading may depend on.

    Args:
        span: The scale of the decision's values, (0, 1) for ratios.
        interval: Smallest and largest feasible value.
        balanced: The value that, given to every remaining decision, spends what is left.
    """

    span: Bounds
    interval: Bounds
    balanced: float


@dataclass(frozen=True)
class ActionReading:
    """A pair of inverse maps between an action in [0, 1] and a decision's value."""

    decode: Callable[[float, ReadingContext], float]
    encode: Callable[[float, ReadingContext], float]


def _position(value: float, low: float, high: float) -> float:
    """Where ``value`` lies in [low, high], 0.5 in an empty interval."""
    if high <= low:
        return 0.5
    return min(1.0, max(0.0, (value - low) / (high - low)))


def _decode_absolute(action: float, context: ReadingContext) -> float:
    low, high = context.span
    return low + action * (high - low)


def _encode_absolute(value: float, context: ReadingContext) -> float:
    return _position(value, *context.span)


def _decode_interval(action: float, context: ReadingContext) -> float:
    low, high = context.interval
    return low + action * (high - low)


def _encode_interval(value: float, context: ReadingContext) -> float:
    return _position(value, *context.interval)


def _centre(context: ReadingContext) -> float:
    low, high = context.interval
    return min(high, max(low, context.balanced))


def _decode_centred(action: float, context: ReadingContext) -> float:
    low, high = context.interval
    centre = _centre(context)
    if action <= 0.5:
        return low + 2 * action * (centre - low)
    return centre + (2 * action - 1) * (high - centre)


def _encode_centred(value: float, context: ReadingContext) -> float:
    low, high = context.interval
    centre = _centre(context)
    if value == centre:
        return 0.5
    if value < centre:
        return 0.5 * _position(value, low, centre)
    return 0.5 + 0.5 * _position(value, centre, high)


READINGS: dict[str, ActionReading] = {
    "absolute": ActionReading(_decode_absolute, _encode_absolute),
    "interval": ActionReading(_decode_interval, _encode_interval),
    "centred": ActionReading(_decode_centred, _encode_centred),
}
"""Reading name -> maps: the value itself; the position in the feasible interval; piecewise
linear with 0.5 at the balanced value (PocketFlow's mapping, made budget-relative)."""
