"""Chains of cuts: what leaves the layers that read a group, from one choice to the next.

Where every choice keeps what the choices below it keep, as the first units of a ranking do, the
errors of all of them come from one factorisation per layer, see ``candidates.moments.nested``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_env.plan import Decision

Select = Callable[[str, int], Tensor]
"""Group and count -> the units that stay, sorted."""

Errors = dict[str, npt.NDArray[np.float64]]
"""Decision key -> error of every choice."""


@dataclass(frozen=True)
class Measure:
    """What of a layer's outputs counts, and how.

    Args:
        rows: Layer -> matrix whose products with the outputs count; None for the outputs.
        direct: The same for one cut: layer and inputs that stay -> error.
        is_fitted: Whether layers are fitted after a cut.
        scale: Layer -> factor of all its errors.
    """

    rows: Callable[[str], Tensor | None]
    direct: Callable[[str, Tensor], float]
    is_fitted: bool
    scale: Callable[[str], float]


def summed_over_readers(
    decisions: Sequence[Decision],
    traced: TracedModel,
    layers: Mapping[str, LayerReconstruction],
    select: Select,
    measure: Measure,
    report: Callable[[], object] = lambda: None,
) -> Errors:
    """Returns the errors of all choices, summed over the layers that read a group.

    Layer after layer, so that one factorisation serves all groups that it reads.

    Args:
        decisions: Keep ratios.
        traced: The traced network.
        layers: The layers that count.
        select: See :data:`Select`.
        measure: What is summed.
        report: Called after each layer.
    """
    levels = {d.key: levels_of(d, select) if measure.is_fitted else None for d in decisions}
    curves = {d.key: np.zeros(len(d.choices)) for d in decisions}
    for name, read in readers_of(traced, decisions, layers).items():
        chains = {
            d.key: _by_step(units, level, len(d.choices))
            for d, units in read
            if (level := levels[d.key]) is not None and len(d.choices) > 1
        }
        found = layers[name].nested_errors([*chains.values()], measure.rows(name)) if chains else []
        for key, lost in zip(chains, found or (), strict=bool(found)):
            curves[key][:-1] += lost.flip(0).cpu().numpy() * measure.scale(name)
        for d, _ in read:
            if found is None or d.key not in chains:
                curves[d.key][:-1] += measure.scale(name) * _one_by_one(
                    d, name, traced, select, measure
                )
        report()
    return curves


def readers_of(
    traced: TracedModel,
    decisions: Sequence[Decision],
    layers: Mapping[str, LayerReconstruction],
) -> dict[str, list[tuple[Decision, Tensor]]]:
    """Returns layer -> the decisions about what it reads, each with the inputs of every unit.

    Args:
        traced: The traced network.
        decisions: Keep ratios.
        layers: The layers wanted.

    Returns:
        Layers and decisions in network order; inputs of shape (units, inputs per unit).
    """
    found: dict[str, list[tuple[Decision, Tensor]]] = {}
    for d in decisions:
        for slot in traced.unit_slots(d.target):
            layer = layers.get(slot.module) if slot.role == "consumer" else None
            if layer is not None and slot.axis != layer.form.inputs_first:
                found.setdefault(slot.module, []).append((d, slot.coordinates))
    return found


def levels_of(decision: Decision, select: Select) -> Tensor | None:
    """Returns for every unit how many choices keep it; None if the choices are no chain."""
    levels = torch.zeros(decision.size, dtype=torch.int64)
    counts = [decision.units(choice) for choice in decision.choices]
    for count in counts:
        levels[select(decision.target, count)] += 1
    kept = [int((levels >= len(counts) - place).sum()) for place in range(len(counts))]
    return levels if kept == counts else None


def _by_step(units: Tensor, levels: Tensor, choices: int) -> list[Tensor]:
    """Returns the inputs that are cut with each step down from the largest choice."""
    return [units[levels == level].flatten() for level in range(1, choices)]


def _one_by_one(
    decision: Decision, name: str, traced: TracedModel, select: Select, measure: Measure
) -> npt.NDArray[np.float64]:
    kept = ({decision.target: select(decision.target, decision.units(c))} for c in decision.choices)
    inputs = [traced.kept_inputs(name, one) for one in kept]
    return np.array([measure.direct(name, stay) for stay in inputs[:-1]])


def cut_orders(
    traced: TracedModel,
    decisions: Sequence[Decision],
    layers: Mapping[str, LayerReconstruction],
    select: Select,
) -> dict[str, Tensor]:
    """Returns layer -> its inputs, those first that stay with the smallest choices.

    Inputs that no choice cuts come before all others. Of several groups that a layer reads the
    choices are compared by their keep ratio, so that a plan of about one ratio everywhere keeps the
    beginning of the order.

    Args:
        traced: The traced network.
        decisions: Keep ratios.
        layers: The layers wanted.
        select: Whose choices are chains.
    """
    levels = {d.key: levels_of(d, select) for d in decisions}
    orders = {}
    for name, read in readers_of(traced, decisions, layers).items():
        leaves_at = torch.zeros(layers[name].shape[1], dtype=torch.float64)
        for d, units in read:
            level = levels[d.key]
            if level is not None:
                ratios = torch.tensor([0.0, *d.choices[1:]], dtype=torch.float64)
                smallest = ratios[len(d.choices) - level]
                leaves_at[units] = smallest.unsqueeze(1).expand(units.shape)
        orders[name] = torch.argsort(leaves_at, stable=True)
    return orders
