"""Multi-label classification: any number of labels per sample, average precision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.task import Measure, Meter, Task
from amc_env.errors import InputDataError


class Multilabel(Task):
    """0 or 1 for each label, (N, labels); logits of the same shape. (N, 1) and (N,) are one.

    The score is the average precision (the area under the curve of precision over recall), mean
    over the labels that occur. With one label it is binary classification.
    """

    name = "multilabel"
    metric = "average_precision"
    best_score = 1.0
    offered: ClassVar[Mapping[str, Measure]] = {
        "f1": Measure(best=1.0),
        "accuracy": Measure(best=1.0),
    }
    smooths = True

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks that targets are 0 or 1, one row each."""
        super().check_targets(inputs, targets, name)
        if not isinstance(targets, Tensor) or targets.ndim > 2:
            got = list(targets.shape) if isinstance(targets, Tensor) else type(targets).__name__
            raise InputDataError(
                f"Expected {name}targets of shape [samples, labels], got {got}: give 0 or 1 for "
                f"each label."
            )
        if not bool(((targets == 0) | (targets == 1)).all()):
            raise InputDataError(
                f"Expected 0 or 1 for each label in {name}targets, got other values: give one "
                f"column per label, or choose the task 'classification' for class numbers."
            )

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """Checks that there is a logit for each label."""
        expected = list(_columns(targets).shape)
        if not isinstance(outputs, Tensor) or list(_columns(outputs).shape) != expected:
            got = list(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
            raise InputDataError(
                f"Expected the {who} to answer with logits of shape {expected}, one for each label"
                f"{mode}, got {got}: return the logits, or correct the number of labels."
            )

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy, mean over samples and labels."""
        wanted = _columns(targets).float()
        if self.label_smoothing:
            wanted = wanted * (1.0 - self.label_smoothing) + 0.5 * self.label_smoothing
        return functional.binary_cross_entropy_with_logits(_columns(outputs).float(), wanted)

    def distillation(self, student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
        """``T^2`` times the binary divergence from the teacher, mean over samples and labels.

        As in ``Classification.distillation``, each label a choice of two.
        """
        if student.shape != teacher.shape:
            raise InputDataError(
                f"The teacher answers with shape {list(teacher.shape)}, the student with "
                f"{list(student.shape)}: distillation needs the same labels in both."
            )
        student, teacher = student.float() / temperature, teacher.float() / temperature
        soft = teacher.sigmoid()
        cross = functional.binary_cross_entropy_with_logits(student, soft)
        entropy = functional.binary_cross_entropy_with_logits(teacher, soft)
        return temperature**2 * (cross - entropy)

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``average_precision`` and, where asked for, ``f1``, ``accuracy``."""
        return Precisions(reported=reported)

    def agreement(self, outputs: Tensor, reference: Tensor) -> float:
        """Share of labels that both networks give, or both do not."""
        return float(((outputs > 0) == (reference > 0)).double().mean())


class Precisions:
    """Average precision of each label that occurs, and their mean.

    Args:
        reported: Whether F1 and accuracy over all labels alike are wanted too.
    """

    def __init__(self, *, reported: bool) -> None:
        self._reported = reported
        self._outputs: list[Tensor] = []
        self._targets: list[Tensor] = []

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Keeps a batch: logits and targets (N, labels)."""
        # torchmetrics takes a sigmoid where a value lies outside of [0, 1], so all get it here; in
        # float64, since float32 makes logits above 17 equal.
        self._outputs.append(_columns(outputs.detach()).double().sigmoid().cpu())
        self._targets.append(_columns(targets.detach()).long().cpu())

    def compute(self) -> dict[str, float]:
        """Returns the metrics.

        Raises:
            InputDataError: If no label occurs.
        """
        from torchmetrics.functional.classification import (
            binary_accuracy,
            binary_average_precision,
            binary_f1_score,
        )

        targets = torch.cat(self._targets) if self._targets else torch.empty(0, 0)
        occurs = targets.any(0).nonzero().flatten().tolist()
        if not occurs:
            raise InputDataError(
                "Expected at least one label that is 1 to measure 'average_precision', got none: "
                "check the targets, or choose the metric 'accuracy'."
            )
        outputs = torch.cat(self._outputs)
        precisions = [binary_average_precision(outputs[:, k], targets[:, k]) for k in occurs]
        values = {"average_precision": float(torch.stack(precisions).double().mean())}
        if self._reported:
            values["f1"] = float(binary_f1_score(outputs.flatten(), targets.flatten()))
            values["accuracy"] = float(binary_accuracy(outputs.flatten(), targets.flatten()))
        return values


def _columns(value: Tensor) -> Tensor:
    return value[:, None] if value.ndim == 1 else value
