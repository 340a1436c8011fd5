"""The narrowest slices of a network, for trials of fast kernels and of tracing."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from amc_compress.learners.tracing.traced_model import TracedModel
from amc_env import Decision

_UNITS = (0, 2, 4, 8)  # 0: the smallest choice. Kernels that bundle pixels have at most 8 outputs


def narrow_candidates(traced: TracedModel, decisions: Sequence[Decision]) -> list[nn.Module]:
    """Returns the smallest slice first, and others of a few units, unrepaired, in ``eval`` mode."""
    found: dict[tuple[int, ...], nn.Module] = {}
    for units in _UNITS:
        counts = tuple(d.units(d.nearest(units / d.size)) for d in decisions)
        if counts not in found:
            kept = {d.target: torch.arange(n) for d, n in zip(decisions, counts, strict=True)}
            found[counts] = traced.slice(kept).eval()
    return list(found.values())
