"""Losses and learning rates against slow formulas and known points."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.training.distillation import combined_loss
from amc_compress.learners.training.schedules import learning_rate_factor
from amc_env.errors import InputDataError


def slow_distillation(student: torch.Tensor, teacher: torch.Tensor, t: float) -> float:
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        ps = [math.exp(v / t) / sum(math.exp(w / t) for w in s_row) for v in s_row]
        pt = [math.exp(v / t) / sum(math.exp(w / t) for w in t_row) for v in t_row]
        total += sum(p * math.log(p / q) for p, q in zip(pt, ps, strict=True))
    return t * t * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0, 20.0])
def test_distillation_equals_the_formula(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 7, 5, generator=generator, dtype=torch.float64).unbind()
    got = CLASSIFICATION.distillation(student.float(), teacher.float(), temperature).item()
    assert got == pytest.approx(slow_distillation(student, teacher, temperature), rel=1e-4)


def test_distillation_is_zero_only_for_the_teachers_answers() -> None:
    logits = torch.randn(4, 6, generator=torch.Generator().manual_seed(0))
    # Softmax ignores a shift of all logits.
    assert CLASSIFICATION.distillation(logits + 3.0, logits, 4.0).item() == pytest.approx(
        0.0, abs=1e-5
    )
    assert CLASSIFICATION.distillation(logits.roll(1, 1), logits, 4.0).item() > 0.01


def test_gradient_of_the_soft_part_keeps_its_size_at_high_temperature() -> None:
    # Hinton et al.: at high T the gradient tends to (student - teacher) / classes, both centred.
    generator = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 1, 8, generator=generator).unbind()
    student.requires_grad_(True)
    CLASSIFICATION.distillation(student, teacher, 1000.0).backward()
    centred = (student - student.mean()) - (teacher - teacher.mean())
    assert student.grad is not None
    assert torch.allclose(student.grad, centred.detach() / 8, rtol=0.02, atol=1e-3)


def test_combined_loss_weighs_labels_and_teacher() -> None:
    generator = torch.Generator().manual_seed(2)
    student, teacher = torch.randn(2, 5, 4, generator=generator).unbind()
    labels = torch.tensor([0, 1, 2, 3, 0])
    smoothing = 0.2
    log_p = torch.log_softmax(student, 1)
    hard = -(0.8 * log_p[range(5), labels] + 0.2 * log_p.mean(1)).mean().item()
    soft = slow_distillation(student, teacher, 3.0)
    task = CLASSIFICATION.smoothed(smoothing)
    got = combined_loss(task, student, labels, teacher, temperature=3.0, weight=0.7).item()
    assert got == pytest.approx(0.3 * hard + 0.7 * soft, rel=1e-4)
    alone = combined_loss(task, student, labels, None, temperature=3.0, weight=0.7)
    assert alone.item() == pytest.approx(hard, rel=1e-5)


def test_other_classes_are_rejected() -> None:
    with pytest.raises(InputDataError, match=r"\[2, 5\], the student with \[2, 4\]"):
        CLASSIFICATION.distillation(torch.zeros(2, 4), torch.zeros(2, 5), 4.0)


@pytest.mark.parametrize(
    ("schedule", "step", "total", "warmup", "expected"),
    [
        ("cosine", 0, 100, 0, 1.0),
        ("cosine", 50, 100, 0, 0.5),
        ("cosine", 25, 100, 0, 0.5 + math.sqrt(0.5) / 2),
        ("cosine", 75, 100, 0, 0.5 - math.sqrt(0.5) / 2),
        ("cosine", 0, 100, 10, 0.1),
        ("cosine", 9, 100, 10, 1.0),
        ("cosine", 10, 100, 10, 1.0),
        ("cosine", 55, 100, 10, 0.5),
        ("constant", 99, 100, 0, 1.0),
        ("constant", 1, 100, 4, 0.5),
        ("one-cycle", 0, 100, 0, 0.04),
        ("one-cycle", 15, 100, 0, 0.52),
        ("one-cycle", 30, 100, 0, 1.0),
        ("one-cycle", 65, 100, 0, (1.0 + 1e-4) / 2),
    ],
)
def test_schedules_at_known_points(
    schedule: str, step: int, total: int, warmup: int, expected: float
) -> None:
    got = learning_rate_factor(schedule, step, total, warmup)
    assert got == pytest.approx(expected, abs=1e-9)


@given(
    schedule=st.sampled_from(["cosine", "one-cycle", "constant"]),
    total=st.integers(1, 500),
    data=st.data(),
)
def test_the_factor_is_always_in_zero_one(schedule: str, total: int, data: st.DataObject) -> None:
    warmup = data.draw(st.integers(0, total - 1))
    step = data.draw(st.integers(0, total - 1))
    assert 0.0 < learning_rate_factor(schedule, step, total, warmup) <= 1.0
