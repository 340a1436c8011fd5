"""Knowledge distillation: soft targets of a teacher next to the labels."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc_compress.learners.tasks.task import Task


def combined_loss(
    task: Task,
    student: Any,
    targets: Any,
    teacher: Any,
    *,
    temperature: float,
    weight: float,
    of_terms: float = 1.0,
    of_samples: float = 1.0,
) -> Tensor:
    """``(1 - weight) loss(student, targets) + weight distillation``; without a teacher, the loss.

    Args:
        task: Whose losses these are.
        student: Outputs that count.
        targets: Of the batch.
        teacher: Outputs of the teacher, without gradient; ``None`` for no teacher.
        temperature: Of the distillation.
        weight: Of the distillation, in [0, 1].
        of_terms: Factor of the loss, where the batch is a part of one.
        of_samples: Likewise of the distillation.
    """
    loss = scaled(task.loss(student, targets), of_terms)
    if teacher is None:
        return loss
    soft = scaled(task.distillation(student, teacher, temperature), of_samples)
    return (1.0 - weight) * loss + weight * soft


def scaled(loss: Tensor, factor: float) -> Tensor:
    """Returns ``factor * loss``; the loss itself, bit for bit, of factor 1."""
    return loss if factor == 1.0 else loss * factor
