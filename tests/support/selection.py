"""Which cases of a test `make test` runs; `make test-all` runs all of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

_FAST = 15
"""Most examples of a property in ``make test``."""


def quick(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Returns values as parameters, marked as slow unless chosen.

    Args:
        values: Of a parameter.
        chosen: Those that ``make test`` runs.

    Raises:
        ValueError: If a chosen value is none of the values.
    """
    values = list(values)
    if unknown := [value for value in chosen if value not in values]:
        raise ValueError(f"Expected values out of {values}, got {unknown}.")
    slow = pytest.mark.slow
    return [value if value in chosen else pytest.param(value, marks=slow) for value in values]


def examples(number: int, **more: Any) -> settings:
    """Returns how often a property is tried, fewer times in the profile ``fast``.

    Args:
        number: Of examples in every other profile.
        more: Other settings.
    """
    is_fast = settings.get_current_profile_name() == "fast"
    return settings(max_examples=min(number, _FAST) if is_fast else number, deadline=None, **more)
