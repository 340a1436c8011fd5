"""Custom: whatever a network returns, for a metric and a loss of the user's own."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from amc_compress.learners.tasks.ready.agreement import Agreement, all_tensors
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError


class Custom(Task):
    """Hands all outputs to a metric and a loss that are given: several heads, or any structure.

    Tuples stay tuples; lists of tensors become tuples, objects dictionaries of their tensors. A
    teacher is followed in all of them as the task ``agreement`` follows the original.
    """

    name = "custom"
    metric = "custom"
    needs_own = True

    def __init__(self) -> None:
        self._alike = Agreement()

    def outputs(self, raw: Any) -> Any:
        """Returns all tensors of what came back, in their structure."""
        return all_tensors(raw)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """There is none but the user's."""
        raise InputDataError(
            "Expected a loss with the task 'custom', which has none of its own, got none: pass "
            "loss=, a function of outputs and targets."
        )

    def meter(self, *, reported: bool = False) -> NoMeter:
        """Returns a meter of nothing: what is reported is the user's metric."""
        return NoMeter()

    def distillation(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """As of the task ``agreement``."""
        return self._alike.distillation(student, teacher, temperature)

    def agreement(self, outputs: Any, reference: Any) -> float:
        """As of the task ``agreement``."""
        return self._alike.agreement(outputs, reference)


class NoMeter:
    """Measures nothing."""

    def update(self, outputs: Any, targets: Any) -> None:
        """Does nothing."""

    def compute(self) -> dict[str, float]:
        """Returns nothing."""
        return {}
