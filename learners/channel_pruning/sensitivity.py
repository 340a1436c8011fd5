"""Reconstruction error by cutting one group, from Gram matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.chains import (
    Errors,
    Measure,
    Select,
    readers_of,
    summed_over_readers,
)
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_env.plan import Decision


def error_curves(
    decisions: Sequence[Decision],
    traced: TracedModel,
    layers: Mapping[str, LayerReconstruction],
    select: Select,
) -> Errors:
    """Returns the share of its consumers' output energy that each choice loses, repaired.

    Args:
        decisions: Of the groups.
        traced: The traced network.
        layers: Layers with input statistics.
        select: Group and count -> the units that stay, sorted.

    Returns:
        By decision key, shape (choices,); zeros where no consumer has statistics.
    """
    measure = Measure(
        rows=lambda _: None,
        direct=lambda name, inputs: layers[name].squared_error(inputs),
        is_fitted=True,
        scale=lambda _: 1.0,
    )
    curves = summed_over_readers(decisions, traced, layers, select, measure)
    energy = dict.fromkeys(curves, 0.0)
    for name, read in readers_of(traced, decisions, layers).items():
        for d, _ in read:
            energy[d.key] += layers[name].energy
    return {
        key: curve / energy[key] if energy[key] > 0.0 else 0.0 * curve
        for key, curve in curves.items()
    }
