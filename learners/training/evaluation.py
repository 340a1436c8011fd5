"""The metrics of networks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from amc_compress.learners.networks.intake import plain_float
from amc_compress.learners.numerics.layout import usable_layout
from amc_compress.learners.numerics.precision import autocast, working_dtype
from amc_compress.learners.tasks.inputs import Split, count, evaluating
from amc_compress.learners.tasks.noise import GroupedMeter
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Meter, Task
from amc_compress.learners.training.data_checks import Batches, BatchReader, forward
from amc_env.errors import InputDataError
from amc_env.validation.checks import checked


@checked
def evaluate(
    model: nn.Module,
    loader: Batches,
    *,
    task: str | Task = "classification",
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> float:
    """The score of a network, higher is better; the model moves to ``device``, keeps its mode.

    For classification top-1 accuracy in [0, 1], in float32. See :func:`measure` for all metrics.

    Raises:
        InputDataError: No images, images that the network cannot take, or labels outside its
            classes.
    """
    task = make_task(task)
    return task.score(measure(model, loader, task=task, precision=precision, device=device))


@checked
def measure(
    model: nn.Module,
    loader: Batches,
    *,
    task: str | Task = "classification",
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> dict[str, float]:
    """Metric name -> value over all batches of a loader; the metric of the score first.

    Raises:
        InputDataError: As :func:`evaluate`.
    """
    model, task = plain_float(model), make_task(task)
    dtype = working_dtype(model, task.precision(precision), device)
    return measured(model, loader, "", task, dtype, device, meter=task.meter(reported=True))


def evaluate_in_groups(
    model: nn.Module,
    loader: Batches,
    *,
    task: Task,
    precision: str = "auto",
    device: str | torch.device = "cpu",
) -> tuple[float, tuple[float | None, ...]]:
    """Returns the score of a network as :func:`evaluate`, and those of groups of the samples.

    From the latter of two networks :func:`amc_compress.learners.tasks.noise.standard_error` tells
    how much of their difference other samples would change.

    Raises:
        InputDataError: As :func:`evaluate`.
    """
    model = plain_float(model)
    meter = GroupedMeter(task)
    dtype = working_dtype(model, task.precision(precision), device)
    values = measured(model, loader, "", task, dtype, device, meter=meter)
    return task.score(values), meter.scores()


def measured(
    model: nn.Module,
    loader: Batches,
    name: str,
    task: Task,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    meter: Meter | None = None,
) -> dict[str, float]:
    """Returns the metrics of a network in float32 over all batches of a loader.

    Args:
        model: It moves to ``device``, and keeps its mode.
        loader: At least one batch.
        name: What errors call the data; it ends in a space.
        task: What the network is for.
        dtype: Type to compute in.
        device: Where to.
        meter: What measures; that of the task's score if ``None``.

    Raises:
        InputDataError: As :func:`evaluate`.
    """
    meter = task.meter() if meter is None else meter
    asked = Asked(model, name, task, dtype, device)
    total = 0
    with asking(model):
        for batch in loader:
            answer = asked(batch)
            meter.update(answer.outputs, answer.targets)
            total += answer.samples
    return computed(meter, total)


class Answer(NamedTuple):
    """What a network says of a batch, what is right, and of how many samples."""

    outputs: Any
    targets: Any
    samples: int


class Asked:
    """Asks a network for its outputs of batches; what the first one settles holds for all.

    Args:
        model: It moves to ``device``.
        name: What errors call the data; it ends in a space.
        task: What the network is for.
        dtype: Type to compute in.
        device: Where to.
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        task: Task,
        dtype: torch.dtype,
        device: str | torch.device,
    ) -> None:
        self._model = model.to(device)
        self._task, self._dtype, self._device = task, dtype, device
        self._reader = BatchReader(
            model, name, device, lambda one: usable_layout(model, one), task=task
        )

    def read(self, batch: Any) -> Split:
        """Returns inputs and targets of a batch, as the network takes them."""
        return self._reader.read(batch)

    def __call__(self, batch: Any) -> Answer:
        """Returns what the network says of a batch."""
        inputs, targets = self.read(batch)
        with autocast(self._dtype, self._device):
            outputs = forward(self._model, inputs, targets, task=self._task)
        return Answer(outputs, targets, count(inputs))


@contextmanager
def asking(model: nn.Module) -> Iterator[None]:
    """Evaluates a network in the block; the caller's random numbers stay as they are."""
    with evaluating(model):
        torch.manual_seed(0)  # loaders draw random numbers even where they shuffle nothing
        yield


def computed(meter: Meter, total: int) -> dict[str, float]:
    """Returns what was measured of so many samples.

    Raises:
        InputDataError: If there are none.
    """
    if total == 0:
        raise InputDataError("Expected at least one image to evaluate on, got none.")
    return meter.compute()
