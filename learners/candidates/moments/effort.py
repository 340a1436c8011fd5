"""What a pass over the calibration images is allowed to cost.

Networks for images of CIFAR's size are asked for everything, in float32. Where that would be more
than some seconds of a core, moments are taken of fewer images, at more positions of each, and the
network computes in the type that candidates are evaluated in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from amc_compress.learners.tasks.inputs import count
from amc_env.graph import LayerGraph

Batch = TypeVar("Batch")

LARGE = 3e11
"""Multiply-adds of a pass that is as long as it gets: 3 to 10 seconds of one core."""

_LEAST = 64  # samples
_POSITIONS = 10  # as in AMC


@dataclass(frozen=True)
class Effort:
    """How the moments of layers' inputs are taken.

    Args:
        n_samples: The first ones of the calibration data; all if ``None``.
        positions: Outputs of a layer that are looked at per sample; more of layers so wide that
            there would not be two for each column.
        dtype: What the network computes in; the moments are sums in float32 at least.
    """

    n_samples: int | None = None
    positions: int = _POSITIONS
    dtype: torch.dtype = torch.float32

    @property
    def is_limited(self) -> bool:
        """Whether the network is so large that time and memory are saved."""
        return self.n_samples is not None

    def notes(self, n_samples: int) -> tuple[str, ...]:
        """Returns a sentence if fewer samples are looked at than there are, else none."""
        if self.n_samples is None:
            return ()
        return (
            f"Moments for the repair, and gradients, are taken of {self.n_samples} of "
            f"{n_samples:,} calibration samples, moments at more positions of each: a pass has "
            f"{LARGE:.0e} multiply-adds at most.",
        )


USUAL = Effort()


def effort_for(graph: LayerGraph, n_samples: int, dtype: torch.dtype) -> Effort:
    """Returns how the moments of a network are taken.

    Args:
        graph: Of the network.
        n_samples: Of the calibration data.
        dtype: What candidates are evaluated in.
    """
    few = affordable(graph, n_samples)
    if few == n_samples:
        return USUAL
    return Effort(few, math.ceil(_POSITIONS * n_samples / few), dtype)


def affordable(graph: LayerGraph, n_samples: int) -> int:
    """Returns how many of some samples a network may be run on: all, unless that costs too much."""
    full = graph.full()
    macs = sum(layer.macs(full) for layer in graph.layers)
    return max(min(_LEAST, n_samples), min(n_samples, int(LARGE / max(macs, 1.0))))


def first_affordable(graph: LayerGraph, batches: Sequence[Batch]) -> list[Batch]:
    """Returns the first of some batches, and others while a network may be run on them too."""
    first, *others = batches
    left = affordable(graph, sum(map(count, batches))) - count(first)
    found = [first]
    for batch in others:
        left -= count(batch)
        if left < 0:
            break
        found.append(batch)
    return found
