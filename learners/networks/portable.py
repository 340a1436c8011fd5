"""Checks that user objects can be pickled for other programs."""

from __future__ import annotations

import pickle
from types import FunctionType
from typing import Any

import numpy as np
from torch import Tensor

_SCRIPTS = ("__main__", "__mp_main__")


def is_portable(value: object) -> bool:
    """Whether a pickle of it can be written, and loaded by a program that imports what it needs.

    Lambdas and open files cannot be written; classes and functions of a script or notebook cannot
    be found elsewhere. Tried without copying any tensor or array.
    """
    try:
        _Trial(_Nowhere()).dump(value)
    except Exception:  # objects fail to pickle with errors of any type
        return False
    return True


class _Nowhere:
    def write(self, data: Any) -> int:
        return len(data)


class _Trial(pickle.Pickler):
    def persistent_id(self, value: object) -> str | None:
        """Skips what is large and always pickles."""
        plain = type(value) is Tensor or (type(value) is np.ndarray and not value.dtype.hasobject)
        return "data" if plain else None

    def reducer_override(self, value: object) -> Any:
        """Rejects what only the running script knows."""
        if isinstance(value, type | FunctionType) and value.__module__ in _SCRIPTS:
            raise pickle.PicklingError(f"{value.__qualname__} is a part of the running script")
        return NotImplemented
