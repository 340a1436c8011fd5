"""Goals of a search other than the best score within a budget: how far the score may drop."""

from __future__ import annotations

from amc_compress.config.texts import numbers

AFTER = ("search", "finetune")
"""Where a drop of the score is measured: on candidates as the search sees them, or fine-tuned."""

_POINTS = 100.0


def drop(flag: str, text: str) -> str:
    """Reads ``"0.5"`` (points: hundredths of a score) or ``"1%"`` (of the original's score).

    Returns:
        The same, in one spelling.

    Raises:
        ValueError: If it is something else, or negative.
    """
    words = str(text).strip()
    is_share = words.endswith("%")
    try:
        (number,) = numbers(flag, words.removesuffix("%"))
    except ValueError:
        number = -1.0
    if not 0.0 <= number < float("inf"):
        raise ValueError(
            f"Expected {flag} in points of the score, e.g. 0.5 (91.5% may fall to 91.0%), or as a "
            f"share of it, e.g. 1%, got {text!r}."
        )
    return f"{number:g}{'%' if is_share else ''}"


def floor_of(drop: str, original: float) -> float:
    """Returns the least score that a drop allows.

    Args:
        drop: As :func:`drop` returns it.
        original: Score of the original.
    """
    number = float(drop.removesuffix("%")) / _POINTS
    return original - number * (abs(original) if drop.endswith("%") else 1.0)


def drop_text(drop: str) -> str:
    """Returns a drop in words."""
    return f"{drop} of the score" if drop.endswith("%") else f"{drop} points"
