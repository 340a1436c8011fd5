"""From tied labels to channel groups, slots and a layer graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from learners.label_rules import LabelMode
from learners.label_state import Call
from learners.labels import varies

_TIED_TOGETHER = "all its channels are tied together"


@dataclass(frozen=True)
class UnitSlot:
    """Where the units of one group live in one tensor.

    Args:
        module: Qualified name of the module that owns the tensor.
        tensor: Its name there, for example ``"weight"``.
        axis: The axis of the tensor.
        coordinates: Coordinates of every unit, shape ``(size, multiplicity)``.
        role: ``"producer"`` (the unit's outputs are made here), ``"consumer"`` (they are read
            here) or ``"per_channel"`` (norms and other parameters of the channel itself).
    """

    module: str
    tensor: str
    axis: int
    coordinates: Tensor
    role: str


@dataclass
class Slot:
    """One axis of one parameter or buffer.

    ``units`` holds, per coordinate, the index of the unit that it belongs to (0: none); it holds
    classes of labels until the groups are known.
    """

    name: str
    axis: int
    role: str
    units: Tensor

    @property
    def module(self) -> str:
        """Qualified name of the owning module."""
        return self.name.rpartition(".")[0]

    @property
    def tensor(self) -> str:
        """Name of the tensor in its module."""
        return self.name.rpartition(".")[2]


@dataclass
class Grouping:
    """Groups and everything that surgery needs to cut them.

    Args:
        graph: The facts for the environment.
        slots: All axes that some group controls.
        first_unit: Group name -> index of its first unit in the table of units.
        unit_of_label: Unit of every label, 0 for none, shape ``(n_labels,)``.
        n_units: Length of the table of units.
        norms: Modules that normalise -> the unit of each of their channels.
    """

    graph: LayerGraph
    slots: list[Slot]
    first_unit: dict[str, int]
    unit_of_label: Tensor
    n_units: int
    norms: dict[str, Tensor]


def layer_name(parameter: str) -> str:
    """Returns what a layer is called: its module, or its parameter if that is not ``weight``."""
    module, _, tensor = parameter.rpartition(".")
    return module if tensor == "weight" and module else parameter


def weight_name(layer: str, parameters: Container[str]) -> str | None:
    """Returns the name of a layer's weight, the inverse of :func:`layer_name`."""
    for name in (f"{layer}.weight".lstrip("."), layer):
        if name in parameters:
            return name
    return None


class Grouper:
    """Builds groups from what a run under :class:`LabelMode` has tied.

    Args:
        model: The network that ran.
        mode: The mode that watched it.
        batch: Batch size of the run.
    """

    def __init__(self, model: nn.Module, mode: LabelMode, batch: int) -> None:
        self.mode = mode
        self.table = mode.table
        self.batch = batch
        self.tensors: dict[str, Tensor] = {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }
        self.model = model
        self.order = self._layer_order()

    def _layer_order(self) -> list[str]:
        order: dict[str, None] = {}
        for call in self.mode.calls:
            if call.weight is not None:
                order.setdefault(self.mode.parameters[id(call.weight)])
        return list(order)

    # ------------------------------------------------------------------ slots

    def build(self, rejected: Mapping[int, str]) -> Grouping:
        """Returns the grouping.

        Args:
            rejected: Label -> reason, for classes that must not be cut.
        """
        for label, reason in rejected.items():
            self.table.freeze(torch.tensor([label]), reason)
        slots = self._slots()
        members = self._members(slots)
        roots = self.table.roots()
        units = torch.zeros(len(self.table), dtype=torch.int64)
        first_unit: dict[str, int] = {}
        groups: list[ChannelGroup] = []
        n_units = 1
        for name, classes, signature in members:
            first_unit[name] = n_units
            units[classes] = torch.arange(n_units, n_units + len(classes))
            n_units += len(classes)
            groups.append(self._group(name, len(classes), signature, slots))
        unit_of_label = units[roots]
        for slot in slots:
            slot.units = unit_of_label[slot.units]
        starts = torch.tensor([*first_unit.values(), n_units])
        graph = self._graph(groups, slots, unit_of_label, starts)
        kept = [slot for slot in slots if bool(slot.units.any())]
        norms = {name: unit_of_label[ids] for name, ids in self.mode.norm_channels.items()}
        norms = {name: channels for name, channels in norms.items() if bool(channels.any())}
        return Grouping(graph, kept, first_unit, unit_of_label, n_units, norms)

    def _slots(self) -> list[Slot]:
        slots: list[Slot] = []
        for name in self.order:
            key = id(self.tensors[name])
            rows, columns = self.mode.axis_labels.get(key, (None, None))
            if rows is None or columns is None:
                continue
            if key in self.mode.parameter_labels:
                reason = "its weight is used outside its layer"
                for labels in (rows, columns, self.mode.parameter_labels[key]):
                    self.table.freeze(labels, reason)
            slots.append(Slot(name, 0, "producer", rows))
            slots.append(Slot(name, 1, "consumer", columns))
        biases = {id(call.bias) for call in self.mode.calls if call.bias is not None}
        for name, tensor in self.tensors.items():
            known = self.mode.parameter_labels.get(id(tensor))
            if known is None or id(tensor) in self.mode.axis_labels:
                continue
            role = "producer" if id(tensor) in biases else "per_channel"
            axis = self._channel_axis(name, known)
            if axis is not None:
                slots.append(Slot(name, axis, role, known.movedim(axis, 0).flatten(1)[:, 0]
                                  if known.dim() > 1 else known))  # fmt: skip
        return slots

    def _channel_axis(self, name: str, labels: Tensor) -> int | None:
        """Returns the only axis along which the classes of a parameter differ."""
        roots = torch.tensor([self.table.find(x) for x in labels.flatten().tolist()])
        roots = roots.view(labels.shape)
        if labels.dim() == 1:
            return 0
        axes = [axis for axis in range(labels.dim()) if varies(roots, axis)]
        if len(axes) == 1:
            return axes[0]
        self.table.freeze(labels, f"the parameter {name} mixes channels")
        return None

    # ------------------------------------------------------------------ groups

    def _members(self, slots: Sequence[Slot]) -> list[tuple[str, Tensor, tuple[int, ...]]]:
        """Returns ``(name, classes, slot indices)`` per group, in network order."""
        roots = self.table.roots()
        occurrences: dict[int, dict[int, int]] = defaultdict(lambda: defaultdict(int))
        produced: dict[int, None] = {}
        for index, slot in enumerate(slots):
            is_layer = (
                slot.role == "producer" and id(self.tensors[slot.name]) in self.mode.axis_labels
            )
            for root in roots[slot.units].tolist():
                if root:
                    occurrences[root][index] += 1
                    if is_layer:
                        produced.setdefault(root)
        by_signature: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
        for root in produced:  # ordered by first producer, then coordinate
            by_signature[tuple(sorted(occurrences[root].items()))].append(root)
        for root in occurrences.keys() - produced.keys():
            self.table.freeze(torch.tensor([root]), "no layer produces it")
        members, names = [], set[str]()
        for signature, classes in by_signature.items():
            if len(classes) == 1:
                self.table.freeze(torch.tensor(classes), _TIED_TOGETHER)
                continue
            base = layer_name(slots[signature[0][0]].name)
            name, copy = base, 1
            while name in names:
                copy += 1
                name = f"{base}#{copy}"
            names.add(name)
            members.append((name, torch.tensor(classes), tuple(index for index, _ in signature)))
        return members

    def _group(
        self, name: str, size: int, signature: Sequence[int], slots: Sequence[Slot]
    ) -> ChannelGroup:
        def layers(axis: int) -> tuple[str, ...]:
            return tuple(
                layer_name(slots[i].name)
                for i in signature
                if slots[i].axis == axis
                and id(self.tensors[slots[i].name]) in self.mode.axis_labels
            )

        return ChannelGroup(name, size, layers(0), layers(1))

    # ------------------------------------------------------------------ facts

    def _graph(
        self,
        groups: list[ChannelGroup],
        slots: Sequence[Slot],
        unit_of_label: Tensor,
        starts: Tensor,
    ) -> LayerGraph:
        widths = _Widths([group.name for group in groups], starts)
        axes = {(slot.name, slot.axis): widths.of(slot.units) for slot in slots}
        layers = self._layers(axes, widths, unit_of_label)
        parameters = self._channel_parameters(slots, widths)
        full = {group.name: float(group.size) for group in groups}
        counted = sum(layer.weights(full) + layer.has_bias * layer.out_width.at(full)
                      for layer in layers if layer.kind != "matmul")  # fmt: skip
        counted += sum(entry.n_parameters * entry.width.at(full) for entry in parameters)
        buffers = sum(entry.n_buffers * entry.width.at(full) for entry in parameters)
        total = sum(tensor.numel() for tensor in self.model.parameters())
        buffer_bytes = sum(t.numel() * t.element_size() for t in self.model.buffers())
        return LayerGraph(
            tuple(layers), tuple(groups), tuple(parameters), round(total - counted),
            round(buffer_bytes - 4 * buffers), self._frozen(),
        )  # fmt: skip

    def _layers(
        self, axes: Mapping[tuple[str, int], Width], widths: _Widths, unit_of_label: Tensor
    ) -> list[LayerSpec]:
        specs: dict[str, LayerSpec] = {}
        for call in self.mode.calls:
            if call.weight is None:
                spec = self._product(call, widths, unit_of_label)
                count = 2
                while spec.name in specs:
                    spec = replace(spec, name=f"{spec.name.partition('#')[0]}#{count}")
                    count += 1
                specs[spec.name] = spec
                continue
            name = self.mode.parameters[id(call.weight)]
            layer = layer_name(name)
            positions = call.positions // self.batch
            if layer in specs and specs[layer].kind != "matmul":
                old = specs[layer]
                specs[layer] = replace(old, positions=old.positions + positions)
                continue
            specs[layer] = LayerSpec(
                layer, "conv" if call.kernel else "linear",
                axes.get((name, 1), Width(call.shape[1])), axes.get((name, 0), Width(call.shape[0])),
                call.kernel, call.stride, call.groups, positions, call.bias is not None,
                call.input_size,
            )  # fmt: skip
        return list(specs.values())

    def _product(self, call: Call, widths: _Widths, unit_of_label: Tensor) -> LayerSpec:
        name = f"{call.module}.product".lstrip(".")
        if not call.factors:  # a layer whose weight is computed from something else
            rows, columns = call.shape[:2]
            return LayerSpec(
                name, "matmul", Width(columns), Width(rows), call.kernel, call.stride, 1,
                call.positions // self.batch, False, call.input_size,
            )  # fmt: skip
        factors: list[Width] = []
        for size, labels in zip(call.shape, call.factors, strict=True):
            units = None if labels is None else unit_of_label[labels.expand(size)]
            # Channels that are tied along an axis leave with the axis that tells them apart.
            separate = units is not None and varies(units, 0)
            factors.append(widths.of(units) if separate and units is not None else Width(size))
        moving = [width for width in factors if width.terms]
        fixed = [width for width in factors if not width.terms]
        assert len(moving) <= 2, "an activation product with three prunable axes"
        ordered = (*moving, *sorted(fixed, key=lambda width: -width.fixed))
        positions = 1
        for width in ordered[2:]:
            positions *= width.fixed
        first, second = ordered[:2]
        positions = positions // self.batch if positions % self.batch == 0 else positions
        return LayerSpec(name, "matmul", first, second, positions=positions)

    def _channel_parameters(
        self, slots: Sequence[Slot], widths: _Widths
    ) -> list[ChannelParameters]:
        entries: dict[tuple[str, Width], list[int]] = {}
        biases = {id(call.bias) for call in self.mode.calls if call.bias is not None}
        for slot in slots:
            tensor = self.tensors[slot.name]
            if id(tensor) in self.mode.axis_labels or id(tensor) in biases:
                continue
            if tensor.element_size() != 4:
                continue
            counts = entries.setdefault((slot.module or slot.name, widths.of(slot.units)), [0, 0])
            per_channel = tensor.numel() // tensor.shape[slot.axis]
            counts[0 if isinstance(tensor, nn.Parameter) else 1] += per_channel
        return [
            ChannelParameters(name, width, parameters, buffers)
            for (name, width), (parameters, buffers) in entries.items()
        ]

    def _frozen(self) -> dict[str, str]:
        frozen: dict[str, str] = {}
        for name in self.order:
            layer = layer_name(name)
            axes = self.mode.axis_labels.get(id(self.tensors[name]))
            reason = None if axes is None else self.table.first_reason(axes[0].tolist())
            if axes is None:
                reason = "its weight is not understood"
            if reason is not None:
                frozen.setdefault(layer, reason)
        return frozen


class _Widths:
    """Counts coordinates per group."""

    def __init__(self, names: Sequence[str], starts: Tensor) -> None:
        self.names = names
        self.starts = starts

    def of(self, units: Tensor) -> Width:
        """Returns the width of an axis whose coordinates belong to these units (0: none)."""
        fixed = int((units == 0).sum())
        inside = units[units > 0]
        group = torch.bucketize(inside, self.starts, right=True) - 1
        terms = []
        for index in torch.unique(group).tolist():
            size = int(self.starts[index + 1] - self.starts[index])
            terms.append((self.names[index], int((group == index).sum()) // size))
        return Width(fixed, tuple(terms))
