"""Whether options are of the types that an agent declares.

They come from labels such as ``"ddpg:hidden=64"`` too, where no type checker reads them: a word in
the place of a flag is true to Python, and a measurement of something else than was meant.
"""

from __future__ import annotations

import inspect
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "a word"}
_WORDS = {str, Path, type(None)}
_PLAIN = (*_NAMES, Path, type(None))


def check_options(options: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Checks options against annotations.

    Args:
        options: Name -> value.
        hints: Name -> annotation; only plain types and unions of them are looked at, and options
            without an annotation are somebody else's.

    Raises:
        ValueError: If an option is of another type, or NaN.
    """
    for name, value in options.items():
        kinds = _kinds(hints.get(name))
        if kinds and not any(_is(value, kind) for kind in kinds):
            wanted = " or ".join(_NAMES.get(kind, kind.__name__) for kind in kinds)
            raise ValueError(f"Expected the option {name} to be {wanted}, got {value!r}.")


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of everything that a class or a function takes by name.

    Those of a class come from the constructors of its bases too, as ``**options`` hands over to
    them; where both name an option, the class's own stands, be it annotated or not.
    """
    if not inspect.isclass(factory):
        return _hints(factory)
    hints: dict[str, Any] = {}
    for cls in reversed(factory.__mro__[:-1]):
        if "__init__" in vars(cls):
            hints |= _hints(vars(cls)["__init__"])
    return hints


def words_of(hints: Mapping[str, Any]) -> set[str]:
    """Returns the names of options that are words and nothing else, whatever they look like."""
    return {name for name, hint in hints.items() if set(_kinds(hint)) <= _WORDS and _kinds(hint)}


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter that has a name of its own; None where it says nothing."""
    try:
        hints = typing.get_type_hints(function)
    except Exception:  # annotations of the user's may mean nothing outside of their file
        hints = {}
    gathers = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return {name: hints.get(name) for name, p in parameters.items() if p.kind not in gathers}


def _kinds(hint: Any) -> tuple[type, ...]:
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    return parts if all(part in _PLAIN for part in parts) else ()


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def _is(value: Any, kind: type) -> bool:
    """NumPy's scalars are numbers and flags as well, paths are words."""
    flag = isinstance(value, bool | np.bool_)
    if kind is float:
        return isinstance(value, numbers.Real) and not flag and not math.isnan(value)
    if kind is int:
        return isinstance(value, numbers.Integral) and not flag
    if kind is bool:
        return flag
    return isinstance(value, str | Path) if kind in (str, Path) else value is None
