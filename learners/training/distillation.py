"""Knowledge distillation: soft targets of a teacher next to the labels."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from amc_env.errors import InputDataError


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Mean over images of ``T^2 KL(softmax(teacher / T) || softmax(student / T))``.

    Hinton et al. 2015, section 2: soft targets' gradients scale with 1 / T^2, so the factor T^2
    keeps their weight against the labels when T changes. (The paper uses the cross entropy, which
    differs by the teacher's entropy, a constant.)

    Args:
        student: Logits (N, classes).
        teacher: Logits (N, classes), without gradient.
        temperature: T; higher shows more of what the teacher thinks of the wrong classes.

    Raises:
        InputDataError: The shapes differ.
    """
    if student.shape != teacher.shape:
        raise InputDataError(
            f"The teacher answers with shape {list(teacher.shape)}, the student with "
            f"{list(student.shape)}: distillation needs the same classes in both."
        )
    return temperature**2 * functional.kl_div(
        functional.log_softmax(student.float() / temperature, dim=1),
        functional.log_softmax(teacher.float() / temperature, dim=1),
        reduction="batchmean",
        log_target=True,
    )


def combined_loss(
    student: Tensor,
    labels: Tensor,
    teacher: Tensor | None,
    *,
    temperature: float,
    weight: float,
    label_smoothing: float,
) -> Tensor:
    """``(1 - weight) CE(student, labels) + weight distillation``; without a teacher, CE alone."""
    # Losses are sums of small numbers, so they are always computed in fp32.
    loss = functional.cross_entropy(student.float(), labels, label_smoothing=label_smoothing)
    if teacher is None:
        return loss
    return (1.0 - weight) * loss + weight * distillation_loss(student, teacher, temperature)
