"""Opens the tasks of a comparison: what each needs, its environment, its network and data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
from torch import nn

from amc_compress import tasks as ready_made
from amc_compress.comparison import searched
from amc_compress.comparison.origins import origin_of as evaluations_of
from amc_compress.comparison.task import ComparisonTask, Places
from amc_compress.comparison.task_table import TASKS
from amc_compress.data import DataSplits, load_data
from amc_compress.data.given import GivenData
from amc_compress.learners.quantization.preparation import QUANTIZED_GRADIENT_CLIP
from amc_compress.learners.training.config import TrainingConfig
from amc_env import Budget, CompressionEnv
from amc_env.errors import InputDataError
from amc_env.recorded_tasks.recorded import recorded_names
from amc_env.validation.checks import check_known
from amc_env.validation.references import is_reference, resolve

__all__ = [
    "TASKS", "ComparisonTask", "Places", "find_task", "is_shipped", "check_task", "build_env",
    "origin_of", "open_data", "original_network", "training_of", "budget_of",
]  # fmt: skip

_MAKERS: dict[str, Callable[..., CompressionEnv]] = {
    "channels": ready_made.make_channels,
    "bits": ready_made.make_bits,
    "joint": ready_made.make_joint,
}


def find_task(name: str) -> ComparisonTask:
    """Returns the task of that name.

    Args:
        name: One of :data:`TASKS`; or ``package.module:name`` of a :class:`ComparisonTask`, or of
            a function that returns an environment.

    Raises:
        InputDataError: If a reference leads to something else.
        ValueError: If there is none.
    """
    if not is_reference(name):
        return TASKS[check_known("task", name, TASKS)]
    found = resolve(name, "task")
    if isinstance(found, ComparisonTask):
        return ComparisonTask(**{**vars(found), "name": name})
    if callable(found):
        return ComparisonTask(name, "an environment of yours", "own")
    raise InputDataError(
        f"Expected the task {name!r} to be a ComparisonTask, or a function that returns a "
        f"CompressionEnv, got {type(found).__name__}."
    )


def is_shipped(task: ComparisonTask) -> bool:
    """Whether the release holds what the task is played on; True for tasks that are no record."""
    return not task.is_recorded or task.record in recorded_names()


def check_task(task: ComparisonTask, places: Places) -> None:
    """Checks that the data, weights and record of a task exist.

    Raises:
        InputDataError: With what is missing and the option that names it.
    """
    if not is_shipped(task):
        raise InputDataError(
            f"The task {task.name!r} needs a record that does not come with this release (it has "
            f"{', '.join(recorded_names()) or 'none'}): choose another task, or make the record "
            f"with `amc record --task {task.record}` as docs/recorded_tasks.md says."
        )
    if task.kind == "searched":
        _check_searched(task, places)
    elif task.data == "cifar10":
        _check_cifar10(task, places)


def _check_cifar10(task: ComparisonTask, places: Places) -> None:
    if places.data is None or not Path(places.data).is_dir():
        given = "none" if places.data is None else f"{places.data}, which is no folder"
        raise InputDataError(
            f"The task {task.name!r} needs a folder with CIFAR-10 as parquet files, got {given}: "
            f"give --data DIR."
        )
    weights = places.weights.get(task.model)
    if weights is None or not Path(weights).is_file():
        given = "none" if weights is None else f"{weights}, which is no file"
        raise InputDataError(
            f"The task {task.name!r} needs trained weights of {task.model}, got {given}: give "
            f"--weights {task.model}=FILE (`amc train --model {task.model}` makes such a file)."
        )


def _check_searched(task: ComparisonTask, places: Places) -> None:
    """Opens network and data, which says best what is missing, and is not done again."""
    folder = _folder(task, places)
    if task.folder and (folder is None or not Path(folder).is_dir()):
        given = "none" if folder is None else f"{folder}, which is no folder"
        raise InputDataError(
            f"The task {task.name!r} needs the folder of a trained network, got {given}: give "
            f"--weights {task.folder}=FOLDER."
        )
    try:
        searched.open_searched(task, folder)
    except InputDataError as error:
        raise InputDataError(f"The task {task.name!r} cannot be opened. {error}") from error
    except ImportError as error:
        raise InputDataError(
            f"The task {task.name!r} needs the package {error.name}, which is not installed."
        ) from error


def _folder(task: ComparisonTask, places: Places) -> str | None:
    return places.weights.get(task.folder) if task.folder else None


def build_env(task: ComparisonTask, places: Places, **changes: Any) -> CompressionEnv:
    """Builds the environment of a task.

    Args:
        task: The task.
        places: Where its data and weights are.
        changes: Options of the environment that take the place of the task's.

    Raises:
        InputDataError: If data or weights are missing or damaged, or a function of the user's
            returns something else than an environment.
    """
    if task.is_recorded:
        bare = gym.make(f"amc_env:{task.env_id}", disable_env_checker=True, **changes).unwrapped
        assert isinstance(bare, CompressionEnv)  # noqa: S101
        return bare
    if task.kind == "own":
        return _own_env(task, **changes)
    check_task(task, places)
    if task.kind == "searched":
        return searched.build_searched(task, _folder(task, places), **changes)
    options = {"budget": task.budget, **task.options, **changes}
    if task.data != "digits":
        options["weights"] = places.weights[task.model]
    return _MAKERS[task.kind](model=task.model, data=_data_of(task, places), **options)


def _own_env(task: ComparisonTask, **changes: Any) -> CompressionEnv:
    found = resolve(task.name, "task")(**changes)
    bare = getattr(found, "unwrapped", found)
    if not isinstance(bare, CompressionEnv):
        raise InputDataError(
            f"Expected the task {task.name!r} to return a CompressionEnv, got "
            f"{type(bare).__name__}."
        )
    return bare


def origin_of(task: ComparisonTask, places: Places) -> str:
    """Returns what evaluations of a task depend on, as a text that names no path."""
    if task.kind == "searched":
        return searched.origin_of(task, _folder(task, places))
    if task.kind == "own":
        return evaluations_of(task=task.name)
    path = None if task.data == "digits" else Path(places.weights[task.model])
    facts = {"decisions": task.kind, "model": task.model, "data": task.data, **task.options}
    return evaluations_of(path, **facts)


def open_data(task: ComparisonTask, places: Places, seed: int) -> DataSplits | GivenData:
    """Loads the samples of a task, cut as its environment cuts them."""
    if task.kind == "searched":
        return searched.open_searched(task, _folder(task, places)).data
    split = task.options.get("validation_split", "random")
    return load_data(_data_of(task, places), seed=seed, validation_split=split, progress=False)


def original_network(
    task: ComparisonTask, places: Places, splits: DataSplits | GivenData
) -> nn.Module:
    """Returns the trained network that a task compresses."""
    if not isinstance(splits, DataSplits):
        return searched.open_searched(task, _folder(task, places)).network
    weights = places.weights.get(task.model) if task.data != "digits" else None
    return ready_made.trained_network(task.model, _data_of(task, places), weights, splits)


def training_of(task: ComparisonTask, epochs: int) -> TrainingConfig:
    """Returns how the winners of a task are fine-tuned."""
    if task.kind == "searched":
        return searched.training_of(task, epochs)
    clip = None if task.kind == "channels" else QUANTIZED_GRADIENT_CLIP
    return TrainingConfig(epochs=epochs, learning_rate=task.learning_rate, gradient_clip=clip)


def budget_of(task: ComparisonTask) -> Budget:
    """Returns the budget of a task; that of a recorded one stands in its record.

    Raises:
        CompressionError: If the record is missing or damaged.
    """
    return Budget.parse(task.budget) if task.budget else build_env(task, Places()).budget


def _data_of(task: ComparisonTask, places: Places) -> str:
    return "digits" if task.data == "digits" else str(places.data)
