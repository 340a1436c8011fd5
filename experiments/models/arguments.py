"""Keyword arguments of model factories, under any of the usual names."""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from amc_env.errors import InputDataError

SYNONYMS: dict[str, tuple[str, ...]] = {
    "n_classes": (
        *("num_classes", "n_classes", "nclasses", "num_class", "n_class", "nclass", "classes"),
        *("class_num", "num_labels", "n_labels", "num_outputs", "n_outputs"),
    ),
    "in_channels": (
        *("in_channels", "in_chans", "in_ch", "input_channels", "num_channels", "n_channels"),
    ),
    "image_size": ("image_size", "img_size"),
}
"""What factories call the sizes of the data; the first that the signature names is given."""

_ANY_KEYWORD: dict[str, tuple[str, ...]] = {
    "n_classes": ("num_classes", "n_classes", "num_labels"),
    "in_channels": ("in_chans", "in_channels"),
}
"""Tried one after the other on factories that take ``**kwargs``."""

_USUAL_CHANNELS = 3


def parse_arguments(texts: Sequence[str]) -> dict[str, Any]:
    """Reads ``key=value`` texts; values are Python literals, everything else is a string.

    Raises:
        ValueError: If a text has another form, or a key is given twice.
    """
    found: dict[str, Any] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        key = key.strip()
        if not equals or not key.isidentifier():
            raise ValueError(f"Expected --model-args as key=value, e.g. width=0.5, got {text!r}.")
        if key in found:
            raise ValueError(f"Expected every key of --model-args once, got {key!r} twice.")
        try:
            found[key] = ast.literal_eval(value.strip())
        except (ValueError, SyntaxError):
            found[key] = {"true": True, "false": False}.get(value.strip(), value)
    return found


def call_factory(
    factory: Callable[..., Any],
    name: str,
    sizes: Mapping[str, int | None],
    arguments: Mapping[str, Any],
) -> object:
    """Calls a factory with the sizes of the data, under the names that it knows.

    Args:
        factory: What makes a network.
        name: What it is called in messages.
        sizes: Key of :data:`SYNONYMS` -> number; ``None`` is not given.
        arguments: What the user gives, under the factory's own names.

    Raises:
        InputDataError: If it cannot be called so.
    """
    try:
        parameters = inspect.signature(factory).parameters
    except (ValueError, TypeError):  # some builtins have no signature
        return factory(**arguments)
    keywords = dict(arguments)
    open_sizes = []
    for size, number in sizes.items():
        names = [key for key in SYNONYMS[size] if key in parameters]
        if number is None or any(key in arguments for key in SYNONYMS[size]):
            continue
        if names:
            keywords[names[0]] = number
        elif size in _ANY_KEYWORD and not (size == "in_channels" and number == _USUAL_CHANNELS):
            open_sizes.append(size)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    _check_call(factory, name, keywords)
    if not takes_any:
        return factory(**keywords)  # what it raises is the user's to see
    return _tried(factory, keywords, {size: sizes[size] for size in open_sizes})


def _tried(
    factory: Callable[..., Any], keywords: Mapping[str, Any], sizes: Mapping[str, int | None]
) -> object:
    """Calls a factory with ``**kwargs``: only it knows which of them it takes."""
    names = {size: [*_ANY_KEYWORD[size]] for size in sizes}
    while True:
        given = {left[0]: sizes[size] for size, left in names.items() if left}
        try:
            return factory(**keywords, **given)
        except TypeError as error:
            unknown = [key for key in given if f"unexpected keyword argument '{key}'" in str(error)]
            if not unknown:
                raise
            for left in names.values():
                if left and left[0] in unknown:
                    left.pop(0)


def _check_call(factory: Callable[..., Any], name: str, keywords: Mapping[str, Any]) -> None:
    """Checks that a factory can be called so, before its own code is run."""
    try:
        inspect.signature(factory).bind(**keywords)
    except TypeError as error:
        given = ", ".join(keywords) or "no keywords"
        raise InputDataError(
            f"The model factory {name!r} cannot be called with {given}: {error}; give its other "
            f"parameters default values, or name them with --model-args key=value."
        ) from error
