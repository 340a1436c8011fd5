"""The tasks of a comparison by name, and what each of them needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
from torch import nn

from amc_compress import tasks as ready_made
from amc_compress.comparison.origins import origin_of as evaluations_of
from amc_compress.data import DataSplits, load_data
from amc_env import Budget, CompressionEnv
from amc_env.errors import InputDataError
from amc_env.recorded_tasks.recorded import recorded_names
from amc_env.validation.checks import check_known

_MAKERS: dict[str, Callable[..., CompressionEnv]] = {
    "channels": ready_made.make_channels,
    "bits": ready_made.make_bits,
    "joint": ready_made.make_joint,
}

_RECORDED = "-recorded"

_CIFAR: dict[str, Any] = {
    "validation_split": "tail",  # the rows that the checkpoints were not adapted on
    "n_validation": 2000,
    "precision": "auto",
}


@dataclass(frozen=True)
class ComparisonTask:
    """A compression problem that agents are compared on.

    Args:
        name: What it is called on the command line and in the results.
        title: One line about it.
        kind: ``"channels"``, ``"bits"`` or ``"joint"``; ``"recorded"`` for one that a fitted
            surrogate evaluates.
        budget: In its text form.
        model: Name of the network.
        data: ``"digits"``, or ``"cifar10"`` for the folder that :class:`Places` names.
        options: Further options of the environment.
        env_id: Of a recorded task, its Gymnasium id.
        learning_rate: Peak of the fine-tuning.
    """

    name: str
    title: str
    kind: str
    budget: str = ""
    model: str = "digitsnet"
    data: str = "digits"
    options: Mapping[str, Any] = field(default_factory=dict)
    env_id: str = ""
    learning_rate: float = 0.02

    @property
    def is_recorded(self) -> bool:
        """Whether plans are evaluated by a fitted surrogate instead of a network."""
        return self.kind == "recorded"

    @property
    def record(self) -> str:
        """Name of a recorded task's record in the package."""
        return self.name.removesuffix(_RECORDED)


@dataclass(frozen=True)
class Places:
    """Paths of data and weights that tasks need.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Model name -> file of its trained weights.
    """

    data: str | None = None
    weights: Mapping[str, str] = field(default_factory=dict)


def _recorded(name: str, title: str) -> ComparisonTask:
    return ComparisonTask(
        f"{name}{_RECORDED}", f"{title}, recorded", "recorded", env_id=f"amc/{name}-recorded-v0"
    )


TASKS: dict[str, ComparisonTask] = {
    task.name: task
    for task in (
        ComparisonTask(
            "digits-channels",
            "channels of a small network on 8 x 8 digits, 30% of the MACs",
            "channels",
            "macs=0.3",
            options={"round_to": 2, "precision": "fp32"},
        ),
        ComparisonTask(
            "resnet20-channels",
            "channels of ResNet-20 on CIFAR-10, 50% of the MACs",
            "channels",
            "macs=0.5",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "criterion": "lasso"},
        ),
        ComparisonTask(
            "resnet20-channels-30",
            "channels of ResNet-20 on CIFAR-10, 30% of the MACs",
            "channels",
            "macs=0.3",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "criterion": "lasso"},
        ),
        ComparisonTask(
            "mobilenetv2-channels",
            "channels of MobileNet V2 on CIFAR-10, 50% of the MACs",
            "channels",
            "macs=0.5",
            "mobilenet_v2_fast",
            "cifar10",
            {**_CIFAR, "round_to": 8},
        ),
        ComparisonTask(
            "resnet20-bits",
            "bits of the weights of ResNet-20 on CIFAR-10, 4 on average",
            "bits",
            "mean_bits=4/32",
            "resnet20",
            "cifar10",
            {**_CIFAR, "activation_bits": 16},
        ),
        ComparisonTask(
            "resnet20-joint",
            "channels and bits of ResNet-20 on CIFAR-10, 50% of the MACs, 10% of the bytes",
            "joint",
            "macs=0.5,bytes=0.1",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "activation_bits": 16},
        ),
        _recorded("digits-channels", "channels of a small network, 30% of the MACs"),
        _recorded("resnet20-channels", "channels of ResNet-20, 50% of the MACs"),
        _recorded("resnet20-channels-30", "channels of ResNet-20, 30% of the MACs"),
        _recorded("mobilenetv2-channels", "channels of MobileNet V2, 50% of the MACs"),
        _recorded("resnet20-bits", "bits of the weights of ResNet-20, 4 on average"),
        _recorded("resnet20-joint", "channels and bits of ResNet-20"),
    )
}
"""Name -> task."""


def find_task(name: str) -> ComparisonTask:
    """Returns the task of that name.

    Raises:
        ValueError: If there is none.
    """
    return TASKS[check_known("task", name, TASKS)]


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
    if task.data == "digits":
        return
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


def build_env(task: ComparisonTask, places: Places, **changes: Any) -> CompressionEnv:
    """Builds the environment of a task.

    Args:
        task: The task.
        places: Where its data and weights are.
        changes: Options of the environment that take the place of the task's.

    Raises:
        InputDataError: If data or weights are missing or damaged.
    """
    if task.is_recorded:
        bare = gym.make(f"amc_env:{task.env_id}", disable_env_checker=True, **changes).unwrapped
        assert isinstance(bare, CompressionEnv)  # noqa: S101
        return bare
    check_task(task, places)
    options = {"budget": task.budget, **task.options, **changes}
    if task.data != "digits":
        options["weights"] = places.weights[task.model]
    return _MAKERS[task.kind](model=task.model, data=_data_of(task, places), **options)


def origin_of(task: ComparisonTask, places: Places) -> str:
    """Returns what evaluations of a task depend on, as a text that names no path."""
    path = None if task.data == "digits" else Path(places.weights[task.model])
    facts = {"decisions": task.kind, "model": task.model, "data": task.data, **task.options}
    return evaluations_of(path, **facts)


def open_data(task: ComparisonTask, places: Places, seed: int) -> DataSplits:
    """Loads the images of a task, cut as its environment cuts them."""
    split = task.options.get("validation_split", "random")
    return load_data(_data_of(task, places), seed=seed, validation_split=split, progress=False)


def original_network(task: ComparisonTask, places: Places, splits: DataSplits) -> nn.Module:
    """Returns the trained network that a task compresses."""
    weights = places.weights.get(task.model) if task.data != "digits" else None
    return ready_made.trained_network(task.model, _data_of(task, places), weights, splits)


def budget_of(task: ComparisonTask) -> Budget:
    """Returns the budget of a task; that of a recorded one stands in its record.

    Raises:
        CompressionError: If the record is missing or damaged.
    """
    return Budget.parse(task.budget) if task.budget else build_env(task, Places()).budget


def _data_of(task: ComparisonTask, places: Places) -> str:
    return "digits" if task.data == "digits" else str(places.data)
