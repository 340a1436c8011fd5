"""Tasks whose network and data are named as ``amc search`` names them, with its options."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from torch import nn

from amc_compress.comparison.origins import origin_of as evaluations_of
from amc_compress.comparison.task import ComparisonTask
from amc_compress.config.run_config import RunConfig
from amc_compress.data.given import GivenData
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.identity import digest_of
from amc_compress.runs.networks import build_original
from amc_compress.runs.own_data import own_data
from amc_compress.runs.problem import make_env
from amc_compress.runs.task import facts_of
from amc_env import CompressionEnv


@dataclass(frozen=True)
class Opened:
    """Network and data of a task.

    Args:
        network: The trained network, in eval mode.
        data: What the data function makes.
    """

    network: nn.Module
    data: GivenData


def open_searched(task: ComparisonTask, folder: str | None) -> Opened:
    """Calls the functions that a task names; one after the other is asked for this, so it is kept.

    Args:
        task: Of kind ``"searched"``.
        folder: What both functions are called with, if the task says so.

    Raises:
        InputDataError: As the functions say it, e.g. of a package that is not installed.
    """
    return _opened(task.model, task.data, task.options["task"], folder)


@lru_cache(maxsize=1)
def _opened(model: str, data: str, purpose: str, folder: str | None) -> Opened:
    config = RunConfig(model=model, data=data, task=purpose)
    named = {} if folder is None else {"folder": folder}
    given = own_data(config, named=named)
    arguments = tuple(f"{key}={value!r}" for key, value in named.items())
    return Opened(build_original(model, facts_of(given), arguments), given)


def config_of(task: ComparisonTask, **changes: Any) -> RunConfig:
    """Returns the options of a task as a run has them.

    Args:
        task: Of kind ``"searched"``.
        changes: Options that take the place of the task's.

    Raises:
        ValueError: If options contradict each other.
    """
    options = {"budget": task.budget, **task.options, **changes}
    config = RunConfig(model=task.model, data=task.data, **options)
    config.validate(("search",))
    return config


def build_searched(task: ComparisonTask, folder: str | None, **changes: Any) -> CompressionEnv:
    """Builds the environment that a search of these options would have."""
    config, opened = config_of(task, **changes), open_searched(task, folder)
    return make_env(config, config.spec.prepare(opened.data, opened.network))


def training_of(task: ComparisonTask, epochs: int) -> TrainingConfig:
    """Returns the settings of the fine-tuning that a run of these options would have."""
    return replace(config_of(task).spec.training_config(), epochs=epochs)


def origin_of(task: ComparisonTask, folder: str | None) -> str:
    """Returns what evaluations of a task depend on, digests of network and data among it."""
    opened = open_searched(task, folder)
    facts = {"model": task.model, "data": task.data, "network": digest_of(opened.network)}
    return evaluations_of(None, **facts, **opened.data.content, **task.options)
