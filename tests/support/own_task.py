"""A metric, a loss and tasks of a user's own, named by their paths."""

from __future__ import annotations

import torch
from torch import Tensor

from amc_compress.learners import Task
from amc_compress.learners.tasks.ready.regression import Regression


def percent(outputs: Tensor, targets: Tensor) -> float:
    """Returns the share of right classes, in percent."""
    return 100.0 * float((outputs.argmax(1) == targets).double().mean())


percent.higher_is_better = True  # type: ignore[attr-defined]


def median(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the median error, which no mean over batches gives."""
    return (outputs - targets).abs().median()


def squared(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns a loss."""
    return (outputs - targets).square().mean()


class Angles(Regression):
    """A task without a name of its own."""

    del_name = True


class Unnamed(Task):
    """A task that lacks its methods."""


class NoMetric(Regression):
    metric = None  # type: ignore[assignment]


def make() -> Task:
    """Returns a task with a setting."""
    task = Angles()
    task.best_score = None
    return task


def nothing() -> str:
    return "no task"


MEDIAN = torch.median
