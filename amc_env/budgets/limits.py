"""Absolute limits of a budget: ``20M``, ``100kB``, ``2ms``."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation, localcontext
from fractions import Fraction

_SECONDS = {
    "s": Fraction(1), "ms": Fraction(1, 10**3), "us": Fraction(1, 10**6), "ns": Fraction(1, 10**9),
}  # fmt: skip
_FAMILIES: Mapping[str, Mapping[str, Fraction | int]] = {
    "count": {"k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12},
    "B": {
        "B": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30,
    },
    "s": _SECONDS,
}  # fmt: skip
_SPELLINGS = {"K": "k", "KB": "kB", "µs": "us", "μs": "us"}
_TEXT = re.compile(r"([-+]?[0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([^\W\d]\S*)?")
_DIGITS = 400  # more than any float has


@dataclass(frozen=True)
class Limit:
    """An absolute cost.

    Args:
        value: How much, in the unit of the family.
        family: ``"count"``, ``"B"`` (bytes), ``"s"`` (seconds), ``""`` for a number in whatever
            unit the cost has, or another unit, which only a cost in that unit can have.
    """

    value: Fraction
    family: str

    @classmethod
    def parse(cls, text: str) -> Limit:
        """Reads ``"20M"``, ``"100kB"``, ``"2.5 ms"``, ``"100000"``.

        Raises:
            ValueError: If the text has another form, or the number is not positive.
        """
        match = _TEXT.fullmatch(text.strip())
        try:
            number = Fraction(Decimal(match[1])) if match else Fraction(0)
        except InvalidOperation:
            number = Fraction(0)
        if match is None or number <= 0 or not math.isfinite(_float(number)):
            raise ValueError(
                f"Expected a positive number, with a unit (k, M, G, kB, MB, KiB, MiB, us, ms, s), "
                f"got {text!r}."
            )
        unit = _SPELLINGS.get(match[2] or "", match[2] or "")
        for family, factors in _FAMILIES.items():
            if unit in factors:
                return cls(number * factors[unit], family)
        return cls(number, unit)

    @property
    def is_plain(self) -> bool:
        """Whether it is a number without a unit."""
        return not self.family

    def within(self, name: str, unit: str) -> float:
        """Returns the limit in the unit of a cost.

        Args:
            name: Of the cost.
            unit: Of its numbers: ``""`` for counts, ``"B"`` for bytes, ``"ms"``, or any other.

        Raises:
            ValueError: If the cost has no such unit.
        """
        if self.is_plain or self.family == unit or (self.family == "count" and unit in ("", "B")):
            return float(self.value)
        if self.family == "s" and unit in _SECONDS:
            return float(self.value / _SECONDS[unit])
        example = {"": "20M or 500k", "B": "100kB"}.get(unit, f"2{unit}")
        raise ValueError(f"Expected the limit of {name} as {example} or the like, got {self}.")

    def __str__(self) -> str:
        """Returns the shortest text that :meth:`parse` reads; equal limits have equal texts."""
        factors = _FAMILIES.get(self.family, {self.family: 1})
        texts = [(_decimal(self.value / factor), unit) for unit, factor in factors.items()]
        number, unit = min(texts, key=lambda text: len(text[0]))
        return number + unit


def _decimal(value: Fraction) -> str:
    """Returns all digits; units are powers of 2 and 10, so there is an end to them."""
    with localcontext(prec=_DIGITS):
        digits = Decimal(value.numerator) / Decimal(value.denominator)
        return str(f"{digits.normalize():f}")


def _float(value: Fraction) -> float:
    try:
        return float(value)
    except OverflowError:
        return math.inf
