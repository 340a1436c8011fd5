"""Type checks of agent options.

They come from labels such as ``"ddpg:hidden=64"`` too, which no type checker reads. A string where
a bool is expected is truthy and silently changes the experiment.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from amc_env.validation.checks import check_argument, hints_of_function, plain_kinds

_WORDS = {str, Path, type(None)}


def check_options(options: Mapping[str, Any], hints: Mapping[str, Any]) -> None:
    """Checks options against annotations.

    Args:
        options: Name -> value.
        hints: Name -> annotation; only plain types and unions of them are looked at, and options
            without an annotation are skipped.

    Raises:
        ArgumentError: If an option is of another type, NaN or infinite.
    """
    for name, value in options.items():
        if plain_kinds(hint := hints.get(name)):
            # A path may stand where a word is wanted.
            given = str(value) if isinstance(value, Path) else value
            check_argument(f"the option {name}", given, hint)


def hints_of(factory: Callable[..., Any]) -> dict[str, Any]:
    """Returns the annotations of everything that a class or a function takes by name.

    Those of a class come from the constructors of its bases too, as ``**options`` hands over to
    them; where both name an option, the class's own counts, annotated or not.
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
    return {
        name
        for name, hint in hints.items()
        if set(plain_kinds(hint)) <= _WORDS and plain_kinds(hint)
    }


def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """The annotation of each parameter that has a name of its own; None where it says nothing."""
    hints = hints_of_function(function)
    gathers = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    parameters = inspect.signature(function).parameters
    return {name: hints.get(name) for name, p in parameters.items() if p.kind not in gathers}
