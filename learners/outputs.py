"""Outputs of networks, whatever they are packed in."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: object) -> list[Tensor]:
    """Returns all tensors of an output: tuples, dictionaries, data classes and plain objects."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += tensors_in(dict(vars(leaf)))
    return found


def difference(first: object, second: object) -> float:
    """Returns the largest deviation relative to ``max(1, |output|)``; infinite if shapes differ."""
    worst = 0.0
    for a, b in zip(tensors_in(first), tensors_in(second), strict=True):
        if a.shape != b.shape:
            return float("inf")
        if a.numel():
            a, b = a.double(), b.double()
            scale = max(1.0, float(b.abs().max()))
            deviation = float((a - b).abs().max()) / scale
            worst = max(worst, deviation if deviation == deviation else float("inf"))
    return worst
