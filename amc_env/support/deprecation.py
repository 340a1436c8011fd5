"""How public names and arguments go: they warn for one minor release, then they are removed."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from typing_extensions import deprecated as _deprecated

P = ParamSpec("P")
R = TypeVar("R")


def deprecated(instead: str, *, removed_in: str) -> _deprecated:
    """Decorate a function or a class that will go, so that using it warns.

    Args:
        instead: What to use instead.
        removed_in: The version without it.
    """
    return _deprecated(f"Use {instead} instead; this goes in version {removed_in}.")


def renamed_arguments(
    *, removed_in: str, **names: str
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function that still takes keyword arguments by their old names, with a warning.

    Args:
        removed_in: The version without the old names.
        names: Old name -> new name.

    Raises:
        TypeError: In a call, if an argument is given by both names.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for old in names.keys() & kwargs.keys():
                new = names[old]
                if new in kwargs:
                    raise TypeError(
                        f"{function.__name__} got {new!r} twice, once by its old name {old!r}: "
                        f"leave {old!r} out."
                    )
                warnings.warn(
                    f"Use {new!r} instead of {old!r}; this goes in version {removed_in}.",
                    DeprecationWarning,
                    stacklevel=2,
                )
                kwargs[new] = kwargs.pop(old)
            return function(*args, **kwargs)

        return wrapper

    return decorate


def renamed_attribute(old: str, new: str, *, removed_in: str) -> Any:
    """Returns a property that reads an attribute by its old name, with a warning.

    Args:
        old: The name that the property is given.
        new: The attribute.
        removed_in: The version without the old name.
    """

    def read(self: object) -> Any:
        warnings.warn(
            f"Use {new!r} instead of {old!r}; this goes in version {removed_in}.",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(self, new)

    return property(read, doc=f"The old name of ``{new}``.")
