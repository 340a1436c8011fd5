"""Reconstruction error by cutting one group, from Gram matrices."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_env.plan import Decision


def error_curve(
    decision: Decision,
    traced: TracedModel,
    layers: Mapping[str, LayerReconstruction],
    select: Callable[[str, int], Tensor],
) -> np.ndarray:
    """Returns the share of its consumers' output energy that each choice loses, repaired.

    Args:
        decision: The group's decision.
        traced: The traced network.
        layers: Layers with input statistics.
        select: Group and count -> the units that stay, sorted.

    Returns:
        Shape (choices,); zeros where no consumer has statistics.
    """
    curve = np.zeros(len(decision.choices))
    consumers = [
        name
        for group in traced.graph.groups
        if group.name == decision.target
        for name in group.consumers
        if name in layers
    ]
    energy = sum(layers[name].energy for name in consumers)
    if energy <= 0.0:
        return curve
    for index, choice in enumerate(decision.choices[:-1]):
        kept = {decision.target: select(decision.target, decision.units(choice))}
        lost = sum(layers[name].squared_error(traced.kept_inputs(name, kept)) for name in consumers)
        curve[index] = lost / energy
    return curve
