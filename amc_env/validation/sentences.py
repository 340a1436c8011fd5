"""Parts of sentences that messages share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def first_line(error: BaseException, most: int = 200) -> str:
    """Returns the first line of what an error says, else its class, without a full stop.

    A longer one ends at a word, with an ellipsis.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    if len(lines[0]) <= most:
        return lines[0].rstrip(".")
    return lines[0][: most - 3].rsplit(" ", 1)[0] + "..."


def some(names: Iterable[str], most: int = 5) -> str:
    """Returns the first few names in a row, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - most} more" if len(listed) > most else ""
    return ", ".join(listed[:most]) + more or "nothing"


def joined(parts: Sequence[str]) -> str:
    """Returns parts as in ``"a, b and c"``."""
    return " and ".join(part for part in (", ".join(parts[:-1]), parts[-1]) if part)


def counted(number: int, singular: str, plural: str = "") -> str:
    """Returns a number with its noun, e.g. ``"1 search"``, ``"2 searches"``.

    Args:
        number: How many.
        singular: The noun.
        plural: Its plural; with an s if not given.
    """
    return f"{number:,} {singular if number == 1 else plural or singular + 's'}"
