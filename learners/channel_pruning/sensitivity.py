"""What cutting one group, or leaving out one branch, does to outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.chains import (
    Errors,
    Measure,
    Select,
    readers_of,
    summed_over_readers,
)
from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.tasks.inputs import Inputs, ask
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


@torch.no_grad()
def branch_errors(
    decisions: Sequence[Decision], traced: TracedModel, batches: Sequence[Inputs]
) -> Errors:
    """Returns the share of the network's output energy that leaving out a branch changes.

    Args:
        decisions: Of the branches.
        traced: The traced network.
        batches: Calibration inputs.

    Returns:
        By decision key, shape (choices,).
    """
    before = [tensors_in(ask(traced.model, inputs)) for inputs in batches]
    energy = sum(float(x.double().square().sum()) for found in before for x in found)
    curves = {}
    for d in decisions:
        network = traced.without(d.target).eval()
        lost = 0.0
        for inputs, whole in zip(batches, before, strict=True):
            for old, new in zip(whole, tensors_in(ask(network, inputs)), strict=True):
                lost += float((new.double() - old.double()).square().sum())
        share = lost / energy if energy > 0.0 else 0.0
        curves[d.key] = np.array([0.0 if choice else share for choice in d.choices])
    return curves
