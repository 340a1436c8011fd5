"""What cutting one group, or leaving out one branch, does to outputs and to the loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import nn

from amc_compress.learners.candidates.gradient_scores import Scores
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.chains import (
    Errors,
    Measure,
    Select,
    readers_of,
    summed_over_readers,
)
from amc_compress.learners.networks.block_influence import Span, block_influence
from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.tasks.inputs import Inputs, Split, ask, count, device_of, moved
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_env.plan import Decision

DEPTH_SCORES = ("measured", "influence")
"""What is known of branches without an evaluation: each left out in turn, or their influence."""


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
) -> Scores:
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
        curves[d.key] = _without(d, lost / energy if energy > 0.0 else 0.0)
    return curves


@torch.no_grad()
def branch_scores(
    decisions: Sequence[Decision], traced: TracedModel, batches: Sequence[Split], task: Task
) -> Scores:
    """Returns by how much leaving out each branch raises the loss, measured, in nats.

    A branch without which the loss is lower has zeros.

    Args:
        decisions: Of the branches.
        traced: The traced network.
        batches: Calibration inputs and their targets.
        task: Whose loss it is.
    """
    whole = _mean_loss(traced.model, batches, task)
    return {
        d.key: _without(
            d, max(0.0, _mean_loss(traced.without(d.target).eval(), batches, task) - whole)
        )
        for d in decisions
    }


def branch_influences(
    decisions: Sequence[Decision],
    traced: TracedModel,
    batches: Sequence[Inputs],
    measure: Callable[[Sequence[Decision]], Scores],
) -> Scores:
    """Returns how much each branch turns what it is added to, ``1 - E[cos(x, x + f(x))]``.

    Of all branches in one run of the network, where a measure takes one for each. On the scale of
    that measure, by the branch of the median influence; by the next one where leaving it out does
    no harm. x is what the first module of the branch reads, which is not what f is added to where a
    function comes before it.

    Args:
        decisions: Of the branches.
        traced: The traced network.
        batches: Calibration inputs.
        measure: :func:`branch_errors` or :func:`branch_scores` of some of the branches.

    Raises:
        InputDataError: If what that module reads is not of the shape of what is added.
    """
    convolutions = {x.name for x in traced.graph.layers if x.kind == "conv"}
    spans: dict[int, dict[str, Span]] = {}
    for d in decisions:
        of_maps = convolutions.intersection(traced.graph.branch(d.target).layers)
        axis = 1 if of_maps else -1  # where the channels are
        spans.setdefault(axis, {})[d.target] = Span(*traced.ends_of(d.target), adds=True)
    found: dict[str, float] = {}
    for axis, own in spans.items():
        found |= block_influence(traced.model, batches, own, axis=axis)
    worth = {d.target: max(0.0, found[d.target]) for d in decisions}
    ordered, factor = sorted(decisions, key=lambda d: worth[d.target]), 0.0
    for d in ordered[len(ordered) // 2 :]:
        measured = float(measure([d])[d.key].max())
        if measured > 0.0 < worth[d.target]:
            factor = measured / worth[d.target]
            break
    return {d.key: _without(d, factor * worth[d.target]) for d in decisions}


def _without(decision: Decision, worth: float) -> np.ndarray:
    """The curve of a decision that costs so much where it leaves its branch out."""
    return np.array([0.0 if choice else worth for choice in decision.choices])


def _mean_loss(network: nn.Module, batches: Sequence[Split], task: Task) -> float:
    total = 0.0
    with task.differentiable(network):
        for inputs, targets in batches:
            there = moved(targets, device_of(inputs))
            outputs = task.outputs(task.ask(network, inputs, there))
            total += float(task.summed_loss(outputs, there))
    return total / sum(count(inputs) for inputs, _ in batches)
