"""Bit-widths as the command line writes them: ``4``, ``2-8``, ``2,4,8``."""

from __future__ import annotations

from collections.abc import Sequence

from amc_env.costs.storage import FLOAT_BITS, LEGAL_BITS, OFF_BITS


def parse_bits(option: str, text: str) -> tuple[int, ...]:
    """Reads bit-widths, ascending: one number is fixed, several are a choice.

    Args:
        option: Its name, for the error message.
        text: Numbers and ranges with commas.

    Raises:
        ValueError: If the text has another form or names illegal widths.
    """
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise _invalid(option, text) from None
        wanted = range(low, high + 1)
        if not wanted or low not in LEGAL_BITS or high not in LEGAL_BITS:
            raise _invalid(option, text)
        chosen.update(b for b in LEGAL_BITS if b in wanted)
    return tuple(sorted(chosen))


def _invalid(option: str, text: str) -> ValueError:
    return ValueError(
        f"Expected {option} between 2 and 8, or 16 (left in float32), as one number, a range or a "
        f"list, e.g. 4, 2-8 or 2,4,8; got {text!r}."
    )


def bits_text(bits: Sequence[int]) -> str:
    """Returns the shortest text that :func:`parse_bits` reads as these ascending widths."""
    runs: list[list[int]] = []
    for b in bits:
        if runs and runs[-1][-1] == b - 1:
            runs[-1].append(b)
        else:
            runs.append([b])
    parts = [f"{r[0]}-{r[-1]}" if len(r) > 2 else ",".join(str(b) for b in r) for r in runs]
    return ",".join(parts)


def as_choice(bits: Sequence[int]) -> int | tuple[int, ...]:
    """Returns what learners take: a number is fixed, a sequence is decided layer by layer."""
    return bits[0] if len(bits) == 1 else tuple(bits)


def counted_bits(bits: float) -> float:
    """Returns the bits that costs count for a width: those of float32 for "off"."""
    return FLOAT_BITS if bits == OFF_BITS else bits
