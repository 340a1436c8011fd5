"""Copies of environments that share their immutable parts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, TypeVar

T = TypeVar("T")


def copied(value: T, memo: dict[int, Any], shared: Iterable[object]) -> T:
    """Returns a deep copy that shares some of its parts with the original.

    A prepared learner holds a network, statistics and images, and nothing that an environment does
    changes it: ten copies of an environment need one.

    Args:
        value: Of a class whose ``__deepcopy__`` calls this.
        memo: As ``__deepcopy__`` gets it.
        shared: The parts.
    """
    memo.update({id(part): part for part in shared})
    twin = memo[id(value)] = type(value).__new__(type(value))
    vars(twin).update(copy.deepcopy(vars(value), memo))
    return twin
