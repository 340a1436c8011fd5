"""Regression: numbers, mean squared error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.ready.shared.likeness import likeness
from amc_compress.learners.tasks.ready.shared.means import Means, Sums
from amc_compress.learners.tasks.task import Measure, Meter, Task
from amc_env.errors import InputDataError


class Regression(Task):
    """Any numbers (N, ...) per sample; outputs of the same shape. (N, 1) and (N,) are one.

    The score is the negative mean squared error, over all numbers of all samples. Images as targets
    (autoencoders, restoration) fit too.
    """

    name = "regression"
    metric = "mse"
    higher_is_better = False
    best_score = 0.0
    offered: ClassVar[Mapping[str, Measure]] = {
        "mae": Measure(higher_is_better=False, best=0.0),
        "rmse": Measure(higher_is_better=False, best=0.0),
    }

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns inputs and targets, float32."""
        inputs, targets = super().split(batch)
        return inputs, targets.float() if isinstance(targets, Tensor) else targets

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks that targets are finite numbers, one sample each."""
        super().check_targets(inputs, targets, name)
        if not isinstance(targets, Tensor) or targets.is_complex():
            raise InputDataError(
                f"Expected a tensor of numbers as {name}targets, got {type(targets).__name__}: "
                f"give one tensor, the samples in its first dimension."
            )
        if not bool(targets.isfinite().all()):
            raise InputDataError(
                f"Expected finite {name}targets, got NaN or infinite ones: correct or leave out "
                f"their samples."
            )

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that outputs have the shape of the targets."""
        if not isinstance(outputs, Tensor) or _shape(outputs) != _shape(targets):
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer with the shape of the targets, "
                f"{list(targets.shape)}{mode}, got {got}: return as many numbers as there are "
                f"targets."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Mean squared error over all numbers."""
        return functional.mse_loss(outputs.float(), targets.float().reshape(outputs.shape))

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """Mean squared error against the teacher's outputs; numbers know no temperature."""
        if student.shape != teacher.shape:
            raise InputDataError(
                f"The teacher answers with shape {list(teacher.shape)}, the student with "
                f"{list(student.shape)}: distillation needs the same outputs in both."
            )
        return self.loss(student, teacher)

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``mse`` and, where asked for, ``mae`` and ``rmse``."""
        return Means(_both, _rooted, "number") if reported else Means(_squares, None, "number")

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """1 less the squared error over the squares of both, at least 0, mean over the samples."""
        return float(likeness(outputs.detach(), reference).mean())


def _shape(value: Tensor) -> torch.Size:
    return value.shape[:1] if value.ndim == 2 and value.shape[1] == 1 else value.shape


def _difference(outputs: Tensor, targets: Tensor) -> Tensor:
    return outputs.double() - targets.double().reshape(outputs.shape)


def _squares(outputs: Tensor, targets: Tensor) -> Sums:
    return {"mse": (_difference(outputs, targets).square().sum(), outputs.numel())}


def _both(outputs: Tensor, targets: Tensor) -> Sums:
    apart = _difference(outputs, targets)
    return {
        "mse": (apart.square().sum(), apart.numel()),
        "mae": (apart.abs().sum(), apart.numel()),
    }


def _rooted(means: dict[str, float]) -> dict[str, float]:
    return {**means, "rmse": means["mse"] ** 0.5}
