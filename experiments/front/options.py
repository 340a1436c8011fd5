"""The options of a run from Python: the command line's, with values as Python has them."""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike, fspath
from typing import Any, get_args, get_origin

from amc_compress.config.option import ANY_TIME, Option, flag
from amc_compress.config.run_config import OPTIONS, SPELLINGS, RunConfig, types_of_options
from amc_env.errors import ArgumentError, CompressionError

BY_OBJECT = {
    "model": "model",
    "model_args": "model",
    "weights": "model",
    "allow_pickle": "model",
    "teacher_weights": "teacher",
    "train_epochs": "model",
    "train_learning_rate": "model",
    **dict.fromkeys(
        (
            "data", "validation_size", "validation_split", "image_size", "image_column",
            "label_column", "mean", "std", "augment", "memory", "tokens",
        ),
        "train",
    ),
}  # fmt: skip
"""Options of the command line that say by name what is given as an object -> the parameter."""


_FLAG = re.compile(r"--([a-z]+(?:-[a-z]+)*)")
_OF_CALL = ("out", "quiet")


@contextmanager
def words_of_python() -> Iterator[None]:
    """Names options in errors of the block as Python does; commands are left as they are."""
    try:
        yield
    except (CompressionError, ValueError) as error:
        if error.args and isinstance(error.args[0], str):
            parts = error.args[0].split("`")  # commands stand between them
            parts[::2] = [_FLAG.sub(_in_python, part) for part in parts[::2]]
            error.args = ("`".join(parts), *error.args[1:])
        raise


def _in_python(match: re.Match[str]) -> str:
    name = match[1].replace("-", "_")
    if name == "resume":
        return "resume=True"
    return name if name in OPTIONS or name in _OF_CALL else match[0]


def options_from(values: Mapping[str, Any], stages: Collection[str] = ()) -> dict[str, Any]:
    """Returns options by their names.

    Args:
        values: Name (or an older one) -> value; a text is read as the command line reads it.
        stages: Those whose options may be given; all if empty.

    Raises:
        ArgumentError: If one is unknown, or is said by an object here.
    """
    found: dict[str, Any] = {}
    for key, value in values.items():
        name = SPELLINGS.get(key)
        if name is None:
            raise ArgumentError(_unknown(key, stages))
        if name in BY_OBJECT:
            raise ArgumentError(
                f"The option {key!r} is the command line's: here {BY_OBJECT[name]} is an object, "
                f"prepared as you want it; leave {key} out."
            )
        if stages and OPTIONS[name].stage not in (*stages, ANY_TIME):
            raise ArgumentError(
                f"The option {key!r} is settled when {OPTIONS[name].stage} begins; give it to "
                f"compress()."
            )
        found[name] = _read(name, OPTIONS[name], value)
    return found


def _unknown(key: str, stages: Collection[str]) -> str:
    known = [n for n in OPTIONS if n not in BY_OBJECT]
    known = [n for n in known if not stages or OPTIONS[n].stage in (*stages, ANY_TIME)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"Unknown option {key!r}; {hint}docs/options.md describes all of them."


def _read(name: str, option: Option, value: Any) -> Any:
    """Returns the value that a text means; any other value as it is."""
    if isinstance(value, list):
        return tuple(value)
    if isinstance(value, PathLike):
        value = fspath(value)
    hint = types_of_options()[name]
    kinds = {hint, *get_args(hint)}
    if isinstance(value, int | float) and not isinstance(value, bool) and not kinds & {int, float}:
        value = str(value) if str in kinds else value  # bits are a word: "8", "2-8"
    elif isinstance(value, str) and str not in kinds and option.read is None:
        return _number(value) if kinds & {int, float} else value
    if option.read is None or not isinstance(value, str):
        return value
    rows = [part for part in (hint, *get_args(hint)) if get_origin(part) is tuple]
    several = bool(rows) and get_args(rows[0])[0] is str
    return option.read(flag(name), [value] if several else value)


def _number(text: str) -> int | float | str:
    """Returns the number that a text is, else the text, which the option then rejects."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def changed(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """Returns options with others in their place."""
    return dataclasses.replace(config, **values)
