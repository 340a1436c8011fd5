"""Curves of a learner, computed once."""

from __future__ import annotations

import functools
from collections.abc import Callable, MutableMapping
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Curves = dict[str, npt.NDArray[np.float64]]
"""Decision key -> a number for every choice."""

Owner = TypeVar("Owner")


def kept(method: Callable[[Owner], Curves]) -> Callable[[Owner], Curves]:
    """Keeps what a method without arguments returns, by its name in :func:`curves_of`.

    A prepared learner does not change, so its curves stay; several searches ask for them.
    """

    @functools.wraps(method)
    def once(owner: Owner) -> Curves:
        known = curves_of(owner)
        if method.__name__ not in known:
            known[method.__name__] = method(owner)
        return {key: curve.copy() for key, curve in known[method.__name__].items()}

    return once


def curves_of(learner: Any) -> MutableMapping[str, Curves]:
    """Returns what a learner has computed so far: name of the method -> curves."""
    found: MutableMapping[str, Curves] = vars(learner).setdefault("_curves", {})
    return found


def keep_in(learner: Any, place: MutableMapping[str, Curves]) -> None:
    """Lets a learner keep its curves somewhere else, and take those that are there.

    Args:
        learner: The learner; what it knows already is not asked for again.
        place: Where curves are kept, by the name of the method.
    """
    for name, curves in curves_of(learner).items():
        place[name] = curves
    vars(learner)["_curves"] = place
