"""What a pass over the calibration images is allowed to cost.

Networks for images of CIFAR's size are asked for everything, in float32. Where that would be more
than some seconds of a core, moments are taken of fewer images, at more positions of each, and the
network computes in the type that candidates are evaluated in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from amc_env.graph import LayerGraph

LARGE = 3e11
"""Multiply-adds of a pass that is as long as it gets: 3 to 10 seconds of one core."""

_LEAST = 64  # samples


@dataclass(frozen=True)
class Effort:
    """How the moments of layers' inputs are taken.

    Args:
        n_samples: The first ones of the calibration data; all if ``None``.
        dtype: What the network computes in; the moments are sums in float32 at least.
    """

    n_samples: int | None = None
    dtype: torch.dtype = torch.float32


USUAL = Effort()


def effort_for(graph: LayerGraph, n_samples: int, dtype: torch.dtype) -> Effort:
    """Returns how the moments of a network are taken.

    Args:
        graph: Of the network.
        n_samples: Of the calibration data.
        dtype: What candidates are evaluated in.
    """
    few = affordable(graph, n_samples)
    return USUAL if few == n_samples else Effort(few, dtype)


def affordable(graph: LayerGraph, n_samples: int) -> int:
    """Returns how many of some samples a network may be run on: all, unless that costs too much."""
    full = graph.full()
    macs = sum(layer.macs(full) for layer in graph.layers)
    return max(min(_LEAST, n_samples), min(n_samples, int(LARGE / max(macs, 1.0))))
