"""JSON from untrusted files: truncated or damaged content raises one error."""

from __future__ import annotations

import json
from typing import Any

_MOST_DIGITS = 20  # of numbers that 64 bits hold, with a sign


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text says.

    Args:
        text: A text, or the bytes of a file in UTF-8, UTF-16 or UTF-32.

    Raises:
        ValueError: If it is no JSON, is cut short, is nested too deep for Python, says a key twice,
            or holds whole numbers beyond 64 bits. Nothing else is raised.
    """
    try:
        return json.loads(text, object_pairs_hook=_once, parse_int=_whole)
    except RecursionError:
        raise ValueError("its brackets are nested too deep") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """One of two values of a key would be lost without a word."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"it says the key {twice[:100]!r} twice")
    return found


def _whole(digits: str) -> int:
    if len(digits) > _MOST_DIGITS:
        raise ValueError(f"it holds a whole number of {len(digits)} digits")
    return int(digits)
