"""Outputs of networks, unpacked from any container."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.tasks.outputs import tensors_in

__all__ = ["OutputDifference", "compare", "difference", "tensors_in"]


@dataclass(frozen=True)
class OutputDifference:
    """Differences between two outputs.

    Args:
        deviation: The largest one over all tensors, each relative to the largest number of its
            own second version; infinite if shapes differ or something is NaN.
        n_compared: How many numbers were compared.
    """

    deviation: float
    n_compared: int


def compare(first: object, second: object) -> OutputDifference:
    """Compares two outputs, tensor by tensor, each by its own scale."""
    worst, count = 0.0, 0
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        if a.shape != b.shape:
            return OutputDifference(float("inf"), count)
        if a.numel():
            count += a.numel()
            worst = max(worst, _deviation(_doubled(a), _doubled(b)))
    return OutputDifference(worst, count)


def difference(first: object, second: object) -> float:
    """Returns the largest deviation relative to the output's own scale.

    Infinite if shapes differ, something is NaN, or there is nothing to compare.
    """
    found = compare(first, second)
    return found.deviation if found.n_compared else float("inf")


def _doubled(tensor: Tensor) -> Tensor:
    return tensor.to(torch.complex128) if tensor.is_complex() else tensor.double()


def _deviation(a: Tensor, b: Tensor) -> float:
    unequal = ~(a == b)  # also true for NaN
    if not bool(unequal.any()):
        return 0.0
    sizes = b.abs()
    finite = sizes[sizes.isfinite()]
    scale = float(finite.max()) if finite.numel() else 0.0
    deviation = float((a - b).abs()[unequal].max())
    if scale == 0.0 or deviation != deviation:
        return float("inf")
    return deviation / scale
