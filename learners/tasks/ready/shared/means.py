"""Metrics that are means over samples, pixels or tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from amc_env.errors import InputDataError

Sums = Mapping[str, tuple[Tensor, Tensor | int]]
"""Name -> sum over what is counted, and how many were counted."""


class Means:
    """A meter of means: sums are carried in float64, so that the division into batches is lost.

    Args:
        measure: Returns the sums of a batch; the metric of the score first.
        finish: Turns means into metrics, say a logarithm into what it is of.
        counted: What is counted, for the error if there is nothing of it.
    """

    def __init__(
        self,
        measure: Callable[[Any, Any], Sums],
        finish: Callable[[dict[str, float]], dict[str, float]] | None = None,
        counted: str = "sample",
    ) -> None:
        self._measure = measure
        self._finish = finish
        self._counted = counted
        self._sums: dict[str, Tensor] = {}
        self._counts: dict[str, Tensor | int] = {}

    def update(self, outputs: Any, targets: Any) -> None:
        """Takes in a batch."""
        with torch.no_grad():
            for name, (total, count) in self._measure(outputs, targets).items():
                # On the device, so that nothing waits for it.
                self._sums[name] = self._sums.get(name, 0) + total.double()
                self._counts[name] = self._counts.get(name, 0) + count

    def compute(self) -> dict[str, float]:
        """Returns the means.

        Raises:
            InputDataError: If nothing was counted.
        """
        counts = {name: int(count) for name, count in self._counts.items()}
        if not counts or not all(counts.values()):
            raise InputDataError(
                f"Expected at least one {self._counted} to measure on, got none: check the targets "
                f"and what of them is ignored."
            )
        means = {name: float(total) / counts[name] for name, total in self._sums.items()}
        return means if self._finish is None else self._finish(means)


def exponential(value: float) -> float:
    """Returns e to the power of a mean loss; a very bad one stays finite."""
    return math.exp(min(value, 700.0))
