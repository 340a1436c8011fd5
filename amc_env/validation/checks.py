"""Argument validation against annotations, with one-sentence errors.

:func:`checked` reads the annotations of a function or of a class's constructor and checks every
call against them: a word in the place of a number is an error about that parameter, not a failure
somewhere inside NumPy. NumPy's scalars count as the numbers they are.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import math
import numbers
import os
import reprlib
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from os import PathLike
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from amc_env.errors import ArgumentError

SEED_LIMIT = 2**63
"""Seeds are below it: every generator takes them, and every file can hold them."""

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a word",
    Path: "a path",
    type(None): "None",
}
_ABSTRACT = (Sequence, Iterable, Mapping, Set)
_INT64 = 2**63

MOST_THREADS = 1024
"""More processor threads than machines have; far more end the process when they are started."""

T = TypeVar("T", bound=Callable[..., Any])
Name = TypeVar("Name")


def checked(target: T) -> T:
    """Makes a function, or the constructor of a class, check its arguments by its annotations.

    NumPy's scalars are handed on as Python's own; a parameter called ``seed`` is a whole number
    from 0 to ``SEED_LIMIT - 1``. Annotations that cannot be read are not asked.

    Raises:
        ArgumentError: On every call with an argument of another type, a number that is NaN or
            infinite, or one too many or too few.
    """
    if inspect.isclass(target):
        check_constructor(target)
        return target
    return typing.cast(T, _checking(target, target.__name__))


def check_constructor(cls: type) -> None:
    """Makes a class check the arguments of the constructor that it defines itself, if any."""
    if "__init__" in vars(cls):
        cls.__init__ = _checking(vars(cls)["__init__"], cls.__name__)  # type: ignore[misc]


def _checking(function: Callable[..., Any], owner: str) -> Callable[..., Any]:
    signature = inspect.signature(function)
    gathers = {
        name
        for name, p in signature.parameters.items()
        if p.kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    }
    hints: dict[str, Any] | None = None

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal hints
        if hints is None:  # late: by now every name in the module exists
            hints = {k: v for k, v in hints_of_function(function).items() if k not in gathers}
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            name, known = owner, signature
            if function.__name__ == "__init__":  # inherited, perhaps, by a class of other options
                name, known = type(args[0]).__name__, inspect.signature(type(args[0]))
            raise ArgumentError(f"{name} takes {_names(known)}: {error}.") from error
        for name, value in bound.arguments.items():
            if name in hints:
                bound.arguments[name] = check_argument(name, value, hints[name])
        return function(*bound.args, **bound.kwargs)

    return call


def _names(signature: inspect.Signature) -> str:
    return ", ".join(name for name in signature.parameters if name != "self") or "no arguments"


def check_argument(name: str, value: Any, hint: Any) -> Any:
    """Returns an argument, as Python's own number if it is one of NumPy's.

    Args:
        name: Of the parameter, for the message.
        value: What was given.
        hint: Its annotation, resolved; what it does not understand it lets pass.

    Raises:
        ArgumentError: If the value is something else.
    """
    if name == "seed" and (hint is int or value is not None):
        return check_seed(value)
    if isinstance(value, PathLike) and str in plain_kinds(hint) and Path not in plain_kinds(hint):
        value = os.fspath(value)  # the word for a file may be a path
    if not matches(value, hint):
        raise ArgumentError(f"Expected {name} to be {described(hint)}, got {shown(value)}.")
    return value.item() if isinstance(value, np.generic) and value.ndim == 0 else value


def check_seed(seed: Any) -> int:
    """Returns a seed as an ``int``.

    Raises:
        ArgumentError: If it is no whole number from 0 to ``SEED_LIMIT - 1``.
    """
    if not _is_number(seed, int) or not 0 <= seed < SEED_LIMIT:
        raise ArgumentError(
            f"Expected a seed, a whole number from 0 to {SEED_LIMIT - 1}, got {shown(seed)}."
        )
    return int(seed)


def check_threads(threads: object) -> int:
    """Returns a number of processor threads.

    Raises:
        ArgumentError: If it is none from 1 to ``MOST_THREADS``.
    """
    if not _is_number(threads, int) or not 1 <= threads <= MOST_THREADS:  # type: ignore[operator]
        raise ArgumentError(
            f"Expected threads, a whole number from 1 to {MOST_THREADS}, got {shown(threads)}."
        )
    return int(threads)  # type: ignore[call-overload, no-any-return]


def check_least(owner: str, numbers: Mapping[str, float], least: float) -> None:
    """Checks numbers of which none may be smaller than some.

    Args:
        owner: Whose they are, for the message.
        numbers: What each is called -> its value.
        least: The smallest that may be.

    Raises:
        ArgumentError: If one is, or is NaN or infinite.
    """
    for name, number in numbers.items():
        if not least <= number < math.inf:
            raise ArgumentError(f"Expected {name} of {owner} of at least {least}, got {number}.")


def check_known(kind: str, name: Name, known: Iterable[str], own: str = "") -> Name:
    """Returns a name if it is one of those of its kind.

    Raises:
        ValueError: With the sentence of :func:`unknown`, which takes the same arguments.
    """
    names = list(known)
    if name not in names:
        raise ValueError(unknown(kind, name, names, own))
    return name


def unknown(kind: str, name: Any, known: Iterable[str], own: str = "") -> str:
    """Returns the sentence about a name that is not known, with the nearest one that is.

    Args:
        kind: What it names.
        name: The name.
        known: All names of that kind.
        own: What may stand there besides, for the end of the sentence.
    """
    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"Unknown {kind} {name!r}; {hint}available: {', '.join(names)}{own}."


def check_whole(name: str, value: object, least: int) -> int:
    """Returns a whole number of at least ``least``.

    Raises:
        ArgumentError: If it is none.
    """
    if not _is_number(value, int) or value < least:  # type: ignore[operator]
        raise ArgumentError(f"Expected {name} >= {least}, a whole number, got {shown(value)}.")
    return int(value)  # type: ignore[call-overload, no-any-return]


def check_numbers(name: str, values: object, count: int) -> npt.NDArray[np.float64]:
    """Returns finite numbers as an array.

    Args:
        name: What they are, in the plural, for the message.
        values: What was given.
        count: How many are wanted.

    Returns:
        Float64, shape ``(count,)``.

    Raises:
        ArgumentError: If they are something else, or more or fewer.
    """
    try:
        array = np.asarray(values)
        if array.dtype.kind not in "fiu":
            raise TypeError
        numbers_ = array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ArgumentError(f"Expected {count} {name}, got {shown(values)}.") from None
    if numbers_.ndim == 1 and len(numbers_) != count:
        raise ArgumentError(f"Expected {count} {name}, got {len(numbers_)}.")
    if numbers_.shape != (count,) or not np.isfinite(numbers_).all():
        raise ArgumentError(f"Expected {count} {name}, finite numbers, got {shown(values)}.")
    return numbers_


def shown(value: object) -> str:
    """Returns a value as messages show it: short, on one line."""
    try:
        text = reprlib.repr(value)
    except Exception:  # a value of the user's may not even have a text
        text = f"a {type(value).__name__}"
    return " ".join(text.split())


# ---------------------------------------------------------------------- annotations


def hints_of_function(function: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of a function's parameters, without those that mean nothing here.

    Names that are imported for type checkers alone do not exist when a program runs.
    """
    bare = inspect.unwrap(function)
    try:
        hints = typing.get_type_hints(bare)
    except Exception:
        hints = _one_by_one(bare)
    hints.pop("return", None)
    return hints


def _one_by_one(function: Callable[..., Any]) -> dict[str, Any]:
    names = {**vars(typing), **vars(sys.modules[function.__module__])}
    hints: dict[str, Any] = {}
    for name, hint in getattr(function, "__annotations__", {}).items():
        try:
            hints[name] = eval(hint, names) if isinstance(hint, str) else hint
        except Exception:
            continue
    return hints


def plain_kinds(hint: Any) -> tuple[Any, ...]:
    """Returns the types in a union of plain ones (numbers, flags, words, paths, None), else ()."""
    parts = typing.get_args(hint) if _is_union(hint) else (hint,)
    return parts if all(part in _NAMES for part in parts) else ()


def _is_union(hint: Any) -> bool:
    return isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union


def matches(value: Any, hint: Any) -> bool:
    """Whether a value is what an annotation says; annotations that say nothing match all."""
    if hint is None or hint is Any:
        return hint is Any or value is None
    if _is_union(hint):
        return any(matches(value, part) for part in typing.get_args(hint))
    if hint in (bool, int, float):
        return _is_number(value, hint)
    if hint is str:
        return isinstance(value, str)
    if hint is Path:
        return isinstance(value, str | PathLike)
    return _matches_class(value, hint)


def _is_number(value: Any, kind: type) -> bool:
    """NumPy's scalars are numbers and flags as well; NaN and what float cannot hold are none."""
    flag = isinstance(value, bool | np.bool_)
    if kind is bool or flag:
        return flag and kind is bool
    if kind is int:
        return isinstance(value, numbers.Integral) and -_INT64 <= int(value) < 2 * _INT64
    try:
        return isinstance(value, numbers.Real) and math.isfinite(value)
    except OverflowError:
        return False


def _matches_class(value: Any, hint: Any) -> bool:
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    origin = typing.get_origin(hint) or hint
    if origin is Callable or hint is Callable:
        return callable(value)
    if origin in _ABSTRACT or (origin is dict and typing.get_args(hint)):
        return _matches_abstract(value, origin, typing.get_args(hint))
    if origin is tuple:
        return isinstance(value, tuple) and _match_tuple(value, typing.get_args(hint))
    if not inspect.isclass(origin) or origin is object:
        return True
    if getattr(origin, "_is_protocol", False) and not getattr(origin, "_is_runtime_protocol", 0):
        return True
    return isinstance(value, origin)


def _matches_abstract(value: Any, origin: Any, parts: tuple[Any, ...]) -> bool:
    if isinstance(value, str | bytes):  # a word is no list of letters
        return False
    if origin is Iterable:  # it may be read once only, so its parts are not looked at
        return isinstance(value, Iterable) or hasattr(value, "__getitem__")
    is_row = origin is Sequence and isinstance(value, np.ndarray) and value.ndim > 0
    if not is_row and not isinstance(value, origin):
        return False
    if origin in (Mapping, dict):
        sides = zip(parts, (value.keys(), value.values()), strict=False)
        return all(matches(x, part) for part, side in sides for x in side)
    return all(matches(x, part) for part in parts for x in value)


def _match_tuple(value: tuple[Any, ...], parts: tuple[Any, ...]) -> bool:
    if not parts:
        return True
    if parts[-1] is Ellipsis:
        return all(matches(x, parts[0]) for x in value)
    return len(value) == len(parts) and all(map(matches, value, parts))


def described(hint: Any) -> str:
    """Returns an annotation in words."""
    if hint is None:
        return "None"
    if _is_union(hint):
        return " or ".join(dict.fromkeys(described(part) for part in typing.get_args(hint)))
    if hint in _NAMES:
        return _NAMES[hint]
    origin, parts = typing.get_origin(hint) or hint, typing.get_args(hint)
    if origin is typing.Literal:
        return f"one of {', '.join(map(repr, parts))}"
    if origin is Callable or hint is Callable:
        return "a function"
    if origin in (Mapping, dict):
        return "a mapping" + (f" to {described(parts[1])}" if len(parts) == 2 else "")
    if origin is tuple or origin in _ABSTRACT:
        inner = dict.fromkeys(described(part) for part in parts if part is not Ellipsis)
        return "a sequence" + (f" (each {' or '.join(inner)})" if inner else "")
    name = getattr(origin, "__name__", str(origin))
    return f"{'an' if name[0] in 'AEIOU' else 'a'} {name}"
