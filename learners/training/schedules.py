"""Learning rate as a pure function of the step, so that a resumed run needs no scheduler state."""

from __future__ import annotations

import math
from collections.abc import Callable

# One-cycle (Smith & Topin 2018): climb for 30% of the steps from 1/25 of the peak, then fall.
_CLIMB = 0.3
_START = 1 / 25
_END = 1e-4


def constant(progress: float) -> float:
    """1 throughout."""
    return 1.0


def cosine(progress: float) -> float:
    """``(1 + cos(pi p)) / 2`` (Loshchilov & Hutter 2017, equation 5 without restarts)."""
    return 0.5 * (1.0 + math.cos(math.pi * progress))


def one_cycle(progress: float) -> float:
    """Half a cosine wave up from 1/25 to 1 at 30%, half a wave down to 1/10,000."""
    if progress < _CLIMB:
        return 1.0 + (_START - 1.0) * cosine(progress / _CLIMB)
    return _END + (1.0 - _END) * cosine((progress - _CLIMB) / (1.0 - _CLIMB))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": cosine,
    "one-cycle": one_cycle,
    "constant": constant,
}
"""Name -> factor of the peak learning rate as a function of the progress in [0, 1)."""


def learning_rate_factor(schedule: str, step: int, total_steps: int, warmup_steps: int) -> float:
    """Return the factor of the peak learning rate at ``step`` (0-based) of ``total_steps``.

    The warm-up rises linearly, ``(step + 1) / warmup_steps``; the schedule runs over what remains.
    """
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    return SCHEDULES[schedule]((step - warmup_steps) / max(1, total_steps - warmup_steps))


def falling_linearly(total_steps: int) -> Callable[[int], float]:
    """Return a factor that falls linearly to zero, so that the last steps settle."""
    return lambda step: 1 - step / total_steps
