"""Inputs of the criteria, gathered from a traced network."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.criteria import GroupContext, ReaderView, SlotView
from amc_compress.learners.channel_pruning.lasso import contribution_matrix
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Split, device_of, moved
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.tracing.traced_model import TracedModel, UnitSlot


def group_contexts(
    traced: TracedModel,
    model: nn.Module,
    layers: Mapping[str, LayerReconstruction],
    batches: Sequence[Split],
    seed: int,
    task: Task = CLASSIFICATION,
) -> Iterator[GroupContext]:
    """Yields the context of every channel group, in network order: all hold twice the weights.

    Args:
        traced: The traced network.
        model: The original network.
        layers: Layers with input statistics.
        batches: Calibration batches, for gradients.
        seed: Seed of the random criterion.
        task: Whose loss it is.
    """
    gradients = _GateGradients(traced, model, batches, task)
    for index, group in enumerate(traced.graph.groups):
        yield GroupContext(
            name=group.name,
            size=group.size,
            slots=tuple(_view(model, s, group.size) for s in traced.unit_slots(group.name)),
            seed=seed * 1_000_003 + index,
            gate_gradients=lambda name=group.name: gradients.of(name),  # type: ignore[misc]
            contributions=lambda name=group.name: contributions(  # type: ignore[misc]
                traced, layers, name
            ),
            readers=lambda name=group.name: readers(traced, layers, name),  # type: ignore[misc]
        )


def per_unit(value: Tensor, slot: UnitSlot) -> Tensor:
    """Gathers the numbers of each unit from a weight, shape (size, numbers per unit)."""
    size = slot.coordinates.shape[0]
    rows = value.index_select(slot.axis, slot.coordinates.reshape(-1).to(value.device))
    return rows.movedim(slot.axis, 0).reshape(size, -1)


def _tensor(model: nn.Module, slot: UnitSlot) -> Tensor:
    owner = model.get_submodule(slot.module)
    value = getattr(owner, slot.tensor)
    assert isinstance(value, Tensor)
    return value


def _view(model: nn.Module, slot: UnitSlot, size: int) -> SlotView:
    values = per_unit(_tensor(model, slot).detach(), slot)
    assert values.shape[0] == size
    kind = type(model.get_submodule(slot.module)).__name__
    return SlotView(slot.role, slot.module, slot.tensor, kind, values)


def read_or_made(traced: TracedModel, group: str) -> list[UnitSlot]:
    """Returns where the units are read; where nothing with weights reads them, their makers."""
    slots = traced.unit_slots(group)
    for role in ("consumer", "producer"):
        if found := [s for s in slots if s.role == role]:
            return found
    return slots


def consumers(
    traced: TracedModel, layers: Mapping[str, LayerReconstruction], group: str
) -> list[tuple[LayerReconstruction, Tensor]]:
    """Returns the layers that read a group and whose inputs were seen.

    Returns:
        Each with the patch columns of every unit, shape (size, columns per unit), on the device
        of its Gram matrices; empty if no such layer has an output other than zero.
    """
    found = []
    for slot in traced.unit_slots(group):
        layer = layers.get(slot.module)
        if slot.role != "consumer" or layer is None or slot.axis == layer.form.inputs_first:
            continue
        if not 0.0 < layer.energy < math.inf:
            continue
        offsets = torch.arange(layer.kernel_size)
        columns = (slot.coordinates.unsqueeze(-1) * layer.kernel_size + offsets).flatten(1)
        found.append((layer, columns.to(layer.weight.device)))
    return found


def readers(
    traced: TracedModel, layers: Mapping[str, LayerReconstruction], group: str
) -> list[ReaderView]:
    """Returns the layers that read a group, with second moments of what they read."""
    return [
        ReaderView(layer.weight, _second_moments(layer), columns)
        for layer, columns in consumers(traced, layers, group)
    ]


def _second_moments(layer: LayerReconstruction) -> Tensor:
    """Means of products of two inputs of a layer, not centred, shape (conv groups, n, n)."""
    moments = layer.gram / layer.rows
    if layer.mean is None:  # it is not centred there
        return moments
    return moments + layer.mean.unsqueeze(2) * layer.mean.unsqueeze(1)


def contributions(
    traced: TracedModel, layers: Mapping[str, LayerReconstruction], group: str
) -> Tensor | None:
    """Sums He et al.'s quadratic form over the consumers of a group, each scaled to its output.

    Without the scaling the consumer with the largest activations would decide alone.
    """
    total: Tensor | None = None
    for layer, columns in consumers(traced, layers, group):
        form = contribution_matrix(layer.weight, layer.gram, columns) / layer.energy
        total = form if total is None else total + form
    return total


class _GateGradients:
    """d loss / d gate of every unit, computed once for all groups and only when asked for."""

    def __init__(
        self,
        traced: TracedModel,
        model: nn.Module,
        batches: Sequence[Split],
        task: Task,
    ) -> None:
        self._task = task
        self._traced = traced
        self._model = model
        self._batches = batches
        self._found: dict[str, Tensor] = {}

    def of(self, group: str) -> Tensor:
        """Returns the gradients of a group, shape (batches, size)."""
        if not self._found:
            self._compute()
        return self._found[group]

    def _compute(self) -> None:
        model = copy.deepcopy(self._model).eval()
        for parameter in model.parameters():
            parameter.requires_grad_(True)
        slots = {g.name: read_or_made(self._traced, g.name) for g in self._traced.graph.groups}
        rows: dict[str, list[Tensor]] = {name: [] for name in slots}
        task = self._task
        with torch.enable_grad(), task.differentiable(model):
            for inputs, targets in self._batches:
                model.zero_grad()
                targets = task.drawn(moved(targets, device_of(inputs)))
                loss = task.loss(task.outputs(task.ask(model, inputs, targets)), targets)
                torch.autograd.backward(loss)
                for name, found in slots.items():
                    rows[name].append(self._gate(model, name, found))
        self._found = {name: torch.stack(batch) for name, batch in rows.items()}

    def _gate(self, model: nn.Module, group: str, slots: Sequence[UnitSlot]) -> Tensor:
        size = next(g.size for g in self._traced.graph.groups if g.name == group)
        total = torch.zeros(size, dtype=torch.float64)
        for slot in slots:
            value = _tensor(model, slot)
            if value.grad is not None:
                product = per_unit((value.grad * value).detach(), slot)
                total += product.sum(1).double().cpu()
        return total
