"""Loss increase by cutting one group, estimated from gradients and Gram matrices.

Equation (1) of ``gradient_scores``, summed over the layers that read the group; ``D`` is
what the repair changes of their weights, the cut columns included.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm.auto import tqdm

from amc_compress.learners.candidates.gradient_scores import (
    Scores,
    curvature_root,
    falling,
    rise_from_weights,
    weight_fisher,
)
from amc_compress.learners.candidates.moments.pieces import Some
from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.chains import (
    Measure,
    Select,
    readers_of,
    summed_over_readers,
)
from amc_compress.learners.channel_pruning.ranking import per_unit, read_or_made
from amc_compress.learners.tasks.inputs import Split, count
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.tracing.traced_model import TracedModel, UnitSlot
from amc_env.plan import Decision
from amc_env.support.progress import no_bar


@dataclass(frozen=True)
class Repair:
    """What happens to layers whose inputs are cut.

    Args:
        layers: Layers with input statistics.
        proxy: Whether they are fitted, and batch norms measured again.
        norms: Layers with a batch norm right behind them.
    """

    layers: Mapping[str, LayerReconstruction]
    proxy: Proxy
    norms: Collection[str]

    def weight(self, name: str, inputs: Tensor) -> Tensor:
        """Returns the weights of a layer that keeps some inputs, zeros for the others."""
        layer = self.layers[name]
        original = layer.weight.reshape(layer.shape)
        kept = original.index_select(1, inputs.to(original.device))
        if self.proxy.reconstruct:
            kept = layer.form.outputs_first(layer.solve(inputs)[0]).to(original)
        if inputs.numel() < layer.shape[1]:
            kept = layer.on_original(kept, inputs)
        padded = torch.zeros_like(original).index_copy(1, inputs.to(original.device), kept)
        return layer.form.stored(padded)


def gradient_scores(
    decisions: Sequence[Decision],
    traced: TracedModel,
    repair: Repair,
    select: Select,
    batches: Sequence[Split],
    task: Task,
    *,
    progress: bool = False,
) -> Scores:
    """Returns decision key -> the estimated rise of the loss for every choice, in nats.

    Readers without moments or gradients, and groups that nothing with weights reads, count the
    weights of the cut units by equation (2) of ``gradient_scores``.

    Args:
        decisions: Keep ratios.
        traced: The traced network.
        repair: Of the layers that read a group.
        select: Group and count -> the units that stay, sorted.
        batches: Calibration inputs and their targets.
        task: Whose loss it is.
        progress: Whether to show progress bars.
    """
    readers = readers_of(traced, decisions, repair.layers)
    total = sum(count(inputs) for inputs, _ in batches)
    with tqdm(total=total, desc="gradients", unit="image", disable=no_bar(progress)) as bar:
        roots = curvature_root(traced.model, batches, readers, task, bar.update)
    rest = {
        d.target: [s for s in read_or_made(traced, d.target) if not _is_covered(s, roots)]
        for d in decisions
    }
    units = _unit_scores(traced, rest, batches, task)
    layers = Some(repair.layers, [name for name in readers if name in roots])
    with tqdm(total=len(layers), desc="errors", unit="layer", disable=no_bar(progress)) as bar:
        curves = summed_over_readers(
            decisions, traced, layers, select, _measure(repair, roots), bar.update
        )
    for d in decisions:
        if d.target in units:
            whole = units[d.target]
            kept = [select(d.target, d.units(choice)) for choice in d.choices]
            curves[d.key] += [float(whole.sum() - whole[stay].sum()) for stay in kept]
    return {key: falling(curve) for key, curve in curves.items()}


def _measure(repair: Repair, roots: Mapping[str, Tensor]) -> Measure:
    """Returns equation (1) of ``gradient_scores`` as a sum of squared errors."""

    def direct(name: str, inputs: Tensor) -> float:
        layer = repair.layers[name]
        rise = rise_from_weights(
            roots[name],
            layer,
            repair.weight(name, inputs),
            mean_restored=repair.proxy.restores_mean(name in repair.norms),
        )
        return rise * 2.0 * layer.rows

    return Measure(
        rows=lambda name: roots[name].to(repair.layers[name].weight),
        direct=direct,
        is_fitted=repair.proxy.reconstruct,
        scale=lambda name: 0.5 / repair.layers[name].rows,
    )


def _is_covered(slot: UnitSlot, roots: Collection[str]) -> bool:
    return slot.role == "consumer" and slot.module in roots


def _unit_scores(
    traced: TracedModel,
    slots: Mapping[str, Sequence[UnitSlot]],
    batches: Sequence[Split],
    task: Task,
) -> dict[str, Tensor]:
    """Returns equation (2) per unit, shape (size,), of the groups that have such slots."""
    parameters = dict(traced.model.named_parameters())
    found = {
        group: [(_name(s), s) for s in entries if _name(s) in parameters]
        for group, entries in slots.items()
    }
    found = {group: entries for group, entries in found.items() if entries}
    wanted = dict.fromkeys(name for entries in found.values() for name, _ in entries)
    fisher = weight_fisher(traced.model, batches, wanted, task)
    scores: dict[str, Tensor] = {}
    for group, entries in found.items():
        for name, slot in entries:
            energy = 0.5 * fisher[name] * parameters[name].detach().double().square()
            of_slot = per_unit(energy, slot).sum(1).cpu()
            scores[group] = scores[group] + of_slot if group in scores else of_slot
    return scores


def _name(slot: UnitSlot) -> str:
    return f"{slot.module}.{slot.tensor}".lstrip(".")
