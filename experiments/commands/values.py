"""Conversion of command-line values to the options of a run."""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import typer

from amc_compress.config.bit_widths import parse_bits
from amc_compress.config.defaults import NOT_GIVEN
from amc_compress.config.run_config import RunConfig
from amc_compress.models.weights import split_key


def config_from(parameters: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Builds the options of a run from what the command line was given.

    Args:
        parameters: Option name -> value; what is no option of a run is left out.
        base: Where everything else comes from, if not from the defaults.
    """
    known = {f.name for f in dataclasses.fields(RunConfig)}
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if name not in known:
            continue
        if name in ("data", "weights", "teacher_weights"):
            values[name] = _absolute(None if value is None else str(value))
        elif name in _READERS:
            values[name] = _READERS[name](value)
        else:
            values[name] = value
    return RunConfig(**values) if base is None else dataclasses.replace(base, **values)


def given(ctx: typer.Context) -> dict[str, Any]:
    """Returns the options that stand on the command line, without those left to their defaults."""
    return {
        name: value
        for name, value in ctx.params.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }


_EMBEDDED = "digits"  # the name of data, whatever folders of that name there are


def _absolute(path: str | None) -> str | None:
    """A run folder must not depend on the directory it was started from."""
    if path is None or path == _EMBEDDED:
        return path
    if Path(path).exists():
        return os.path.realpath(path)
    if "::" in path:  # weights
        file, key = split_key(path)
        return f"{os.path.realpath(file)}::{key}" if file.exists() else path
    folder, colon, configuration = path.rpartition(":")
    if folder and Path(folder).is_dir():  # data
        return f"{os.path.realpath(folder)}{colon}{configuration}"
    return path


def _numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise ValueError(
            f"Expected --{name} as numbers with commas, e.g. 0.75,0.5, got {text!r}."
        ) from error


def _names(given: Sequence[str] | None) -> tuple[str, ...]:
    return tuple(given or ())


def _files(given: Sequence[str] | None) -> tuple[str, ...]:
    """Paths, repeated or with commas."""
    parts = [part.strip() for text in given or () for part in text.split(",")]
    return tuple(os.path.realpath(part) for part in parts if part)


def _bits_or_none(text: str) -> int | None:
    if not text:
        return NOT_GIVEN
    if text.strip().lower() == "none":
        return None
    bits = parse_bits("--first-last-bits", text)
    if len(bits) != 1:
        raise ValueError(f"Expected --first-last-bits as one number or none, got {text!r}.")
    return bits[0]


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "mean": functools.partial(_numbers, "mean"),
    "std": functools.partial(_numbers, "std"),
    "ignore": _names,
    "model_args": _names,
    "cost_table": _files,
    "cost": lambda given: tuple(
        part.strip() for text in given or () for part in text.split(",") if part.strip()
    ),
    "warm_start": lambda path: None if path is None else os.path.realpath(path.expanduser()),
    "stages": lambda text: _numbers("stages", text) or (),
    "first_last_bits": _bits_or_none,
}
"""How the text of an option becomes its value, where it is not the value itself."""
