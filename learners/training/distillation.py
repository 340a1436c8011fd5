"""Knowledge distillation: soft targets of a teacher next to the labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc_compress.learners.tasks.task import Task


def combined_loss(
    task: Task, student: Any, targets: Any, teacher: Any, *, temperature: float, weight: float
) -> Tensor:
    """``(1 - weight) loss(student, targets) + weight distillation``; without a teacher, the loss.

    Args:
        task: Whose losses these are.
        student: Outputs that count.
        targets: Of the batch.
        teacher: Outputs of the teacher, without gradient; ``None`` for no teacher.
        temperature: Of the distillation.
        weight: Of the distillation, in [0, 1].
    """
    loss = task.loss(student, targets)
    if teacher is None:
        return loss
    return (1.0 - weight) * loss + weight * task.distillation(student, teacher, temperature)
