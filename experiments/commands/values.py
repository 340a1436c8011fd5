"""Conversion of command-line values to the options of a run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from amc_compress.config.config_file import read_options
from amc_compress.config.option import ANY_TIME, declared, flag
from amc_compress.config.options.workers import WorkerOptions
from amc_compress.config.run_config import OPTIONS, RunConfig
from amc_compress.runs.storage.trust import CODE, Trust

if TYPE_CHECKING:
    from amc_compress.evaluations.where import Where


def values_from(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a run's options.

    Args:
        parameters: Option -> what the command line was given; what is no option of a run is left
            out.
    """
    values: dict[str, Any] = {}
    for name, value in parameters.items():
        if (option := OPTIONS.get(name)) is None:
            continue
        if option.read is None:
            values[name] = value
        else:
            values[name] = option.default if value is None else option.read(flag(name), value)
    return values


def free_options(ctx: typer.Context) -> dict[str, Any]:
    """Returns the options on the command line that a run may be given at any time."""
    return {
        name: value
        for name, value in values_from(given(ctx)).items()
        if OPTIONS[name].stage == ANY_TIME
    }


def config_from(parameters: Mapping[str, Any], base: RunConfig | None = None) -> RunConfig:
    """Builds the options of a run from what the command line was given.

    Args:
        parameters: As for :func:`values_from`.
        base: Where everything else comes from, if not from the defaults.
    """
    values = values_from(parameters)
    return RunConfig(**values) if base is None else dataclasses.replace(base, **values)


def where_from(ctx: typer.Context) -> Where:
    """Returns what a verb's work is done by, as ``--workers`` and its like say."""
    from amc_compress.evaluations.where import Where

    named = {name: value for name, value in given(ctx).items() if name in declared(WorkerOptions)}
    config = config_from(named)
    return Where(config.workers, config.evaluation_timeout, ray=config.ray)


def config_of(ctx: typer.Context, **renamed: str) -> RunConfig:
    """Builds the options of a new run: of the command line, then of ``--config``, then defaults.

    Args:
        ctx: Of a verb that takes ``--config`` and ``--trust``.
        renamed: Option of the run -> what the verb calls it.

    Raises:
        ValueError: If an option is none, or the file is none of options.
        UntrustedFolderError: If the file names code and neither the command line does nor
            ``--trust`` is given.
    """
    found = given(ctx)
    own = values_from(
        found | {name: found.pop(other) for name, other in renamed.items() if other in found}
    )
    path: Path | None = ctx.params.get("config")
    if path is None:
        return RunConfig(**own)
    trust = Trust(everything=bool(ctx.params.get("trust")))
    stored = read_options(path, ctx.params)
    for name, other in renamed.items():  # the file of a run gives both
        if other in stored and name not in stored:
            stored[name] = stored.pop(other)
    if not trust.everything:
        stored.pop("allow_pickle", None)  # as in the folder of a run
    config = RunConfig(**(stored | own))
    trust.check(config, path, _code_of_file(stored, own))
    return config


def _code_of_file(stored: Mapping[str, Any], own: Mapping[str, Any]) -> set[str]:
    """Returns the options whose code would be run because the file names it."""
    unsaid = stored.keys() - own.keys()
    # Arguments of the model count, because they may say which file its code opens.
    return ({*CODE, "agent"} & unsaid) | ({"model"} if "model_args" in unsaid else set())


def given(ctx: typer.Context) -> dict[str, Any]:
    """Returns the options that stand on the command line, without those left to their defaults."""
    return {
        name: value
        for name, value in ctx.params.items()
        if getattr(ctx.get_parameter_source(name), "name", "") == "COMMANDLINE"
    }
