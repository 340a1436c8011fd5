"""From tied labels to channel groups, slots and a layer graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.labels.label_rules import LabelMode
from amc_compress.learners.tracing.labels.labels import varies
from amc_compress.learners.tracing.layer_facts import LayerFacts
from amc_compress.learners.tracing.roles import Roles
from amc_compress.learners.tracing.slots import Slot, layer_name
from amc_env.graph import ChannelGroup, LayerGraph

_TIED_TOGETHER = "all its channels are tied together"
_ONE_HEAD = "its only head of keys and values serves all queries, and one head must stay"


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
        norm_shapes: Modules with a statistic -> the units that it runs over, in their shape.
        averaged: Which units a statistic is taken over, of those that stay, shape ``(n_units,)``.
        transposed: Weights whose outputs lie along axis 1.
    """

    graph: LayerGraph
    slots: list[Slot]
    first_unit: dict[str, int]
    unit_of_label: Tensor
    n_units: int
    norms: dict[str, Tensor]
    norm_shapes: dict[str, Tensor]
    averaged: Tensor
    transposed: frozenset[str] = frozenset()

    def output_axis(self, weight: str) -> int:
        """Returns the axis of a weight that holds its outputs; the other one holds its inputs."""
        return int(weight in self.transposed)


class Grouper:
    """Builds groups from what a run under :class:`LabelMode` has tied.

    Args:
        model: The network that ran.
        mode: The mode that watched it.
        batch: Batch size of the run.
        unseen: Layers that never ran -> what is said about them.
    """

    def __init__(
        self, model: nn.Module, mode: LabelMode, batch: int, unseen: Mapping[str, str]
    ) -> None:
        self.mode = mode
        self.unseen = unseen
        self.table = mode.table
        self.batch = batch
        self.tensors: dict[str, Tensor] = {
            **dict(model.named_parameters()),
            **dict(model.named_buffers()),
        }
        self.model = model
        self.order = self._layer_order()
        self.usual = self._layer_order(training=False)  # run outside of training, too

    def _layer_order(self, training: bool = True) -> dict[str, None]:
        order: dict[str, None] = {}
        for call in self.mode.calls:
            if call.weight is not None and (training or not call.training):
                order.setdefault(self.mode.parameters[id(call.weight)])
        return order

    # ------------------------------------------------------------------ slots

    def build(self, rejected: Mapping[int, str]) -> Grouping:
        """Returns the grouping.

        Args:
            rejected: Label -> reason, for classes that must not be cut.
        """
        for label, reason in rejected.items():
            self.table.freeze_id(label, reason)
        slots = self._slots()
        tell = Roles(self.mode, {name: self.tensors[name] for name in self.order})
        members = self._members(slots, tell)
        roots = self.table.roots()
        units = torch.zeros(len(self.table), dtype=torch.int64)
        first_unit: dict[str, int] = {}
        groups: list[ChannelGroup] = []
        n_units = 1
        for name, classes, signature in members:
            first_unit[name] = n_units
            units[classes] = torch.arange(n_units, n_units + len(classes))
            n_units += len(classes)
            role = tell.of(classes, *self._weights(signature, slots))
            groups.append(self._group(name, len(classes), signature, slots, role))
        unit_of_label = units[roots]
        groups = self._with_least(groups, first_unit, unit_of_label)
        for slot in slots:
            slot.units = unit_of_label[slot.units]
        facts = LayerFacts(
            self.model, self.mode, self.batch, groups, unit_of_label, set(self.usual)
        )
        inseparable = facts.inseparable_labels()
        if len(inseparable):
            return self.build(dict.fromkeys(inseparable, "it shapes a matrix product in two ways"))
        graph = facts.graph(slots, self._frozen())
        kept = [slot for slot in slots if bool(slot.units.any())]
        averaged = torch.zeros(n_units, dtype=torch.bool)
        for ids in self.mode.averaged:
            averaged[unit_of_label[ids]] = True
        averaged[0] = False
        return Grouping(
            graph, kept, first_unit, unit_of_label, n_units,
            norms=_units(self.mode.norm_channels, unit_of_label),
            norm_shapes=_units(self.mode.norm_shapes, unit_of_label),
            averaged=averaged,
            transposed=frozenset(
                name for name, tensor in self.tensors.items() if id(tensor) in self.mode.transposed
            ),
        )  # fmt: skip

    def _slots(self) -> list[Slot]:
        slots: list[Slot] = []
        for name in self.order:
            key = id(self.tensors[name])
            rows, columns = self.mode.axis_labels.get(key, (None, None))
            if rows is None or columns is None:
                continue
            if name not in self.usual and len(columns) > 1:
                # Its parameters count, its work does not: that takes at most one width.
                self.table.freeze(rows, "it runs in training only")
            if key in self.mode.parameter_labels:
                reason = "its weight is used outside its layer"
                for labels in (rows, columns, self.mode.parameter_labels[key]):
                    self.table.freeze(labels, reason)
            roles = ("producer", "consumer")
            if key in self.mode.transposed:
                roles = ("consumer", "producer")
            slots.append(Slot(name, 0, roles[0], rows))
            slots.append(Slot(name, 1, roles[1], columns))
        return [*slots, *self._table_slots(), *self._other_slots()]

    def _table_slots(self) -> list[Slot]:
        """Returns the columns of tables that no layer uses as well."""
        slots = []
        for name, tensor in self.tensors.items():
            if id(tensor) in self.mode.tables and name not in self.order:
                columns = self.mode.axis_labels[id(tensor)][1]
                if id(tensor) in self.mode.parameter_labels:
                    self.table.freeze(columns, "its table is used outside of look-ups")
                slots.append(Slot(name, 1, "per_channel", columns))
        return slots

    def _other_slots(self) -> list[Slot]:
        """Returns the channels of biases, norms and other parameters."""
        slots: list[Slot] = []
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
        if labels.dim() == 2 and (axis := self._unused_along(labels, roots)) is not None:
            return axis
        self.table.freeze(labels, f"the parameter {name} mixes channels")
        return None

    def _unused_along(self, labels: Tensor, roots: Tensor) -> int | None:
        """Returns the channel axis of a table of which the run has read some rows alone.

        Later rows of a table of positions are for longer inputs, and have the same channels.
        """
        is_alone = self.alone[roots]
        for axis in range(2):
            rows = roots.movedim(axis, 1)  # channels last
            unused = is_alone.movedim(axis, 1).all(1)
            used = rows[~unused]
            if bool(unused.any()) and len(used) and not varies(used, 0) and varies(used, 1):
                ids = labels.movedim(axis, 1)
                self.table.tie(ids[~unused][:1], ids[unused])
                return axis
        return None

    @cached_property
    def alone(self) -> Tensor:
        """Which classes hold a single label, shape ``(n_labels,)``."""
        classes = self.table.classes()
        return torch.bincount(classes, minlength=len(classes)) == 1

    # ------------------------------------------------------------------ groups

    def _members(
        self, slots: Sequence[Slot], tell: Roles
    ) -> list[tuple[str, Tensor, tuple[int, ...]]]:
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
            self.table.freeze_id(root, "no layer produces it")
        members, names = [], set[str]()
        for signature, classes in by_signature.items():
            if len(classes) == 1:
                reason = _ONE_HEAD if tell.is_heads(classes) else _TIED_TOGETHER
                self.table.freeze(torch.tensor(classes), reason)
                continue
            first = next(index for index, _ in signature if slots[index].role == "producer")
            base = layer_name(slots[first].name)
            name, copy = base, 1
            while name in names:
                copy += 1
                name = f"{base}#{copy}"
            names.add(name)
            members.append((name, torch.tensor(classes), tuple(index for index, _ in signature)))
        return members

    def _weights(
        self, signature: Sequence[int], slots: Sequence[Slot]
    ) -> tuple[list[str], list[str]]:
        """Returns the weights of layers that make some units, and of those that read them."""
        found: dict[str, list[str]] = {"producer": [], "consumer": []}
        for slot in (slots[index] for index in signature):
            if slot.role in found and slot.name in self.order:
                found[slot.role].append(slot.name)
        return found["producer"], found["consumer"]

    def _group(
        self, name: str, size: int, signature: Sequence[int], slots: Sequence[Slot], role: str
    ) -> ChannelGroup:
        def layers(role: str) -> tuple[str, ...]:
            return tuple(
                layer_name(slots[i].name)
                for i in signature
                if slots[i].role == role and slots[i].name in self.usual
            )

        return ChannelGroup(name, size, layers("producer"), layers("consumer"), role=role)

    def _with_least(
        self, groups: Sequence[ChannelGroup], first_unit: Mapping[str, int], unit_of_label: Tensor
    ) -> list[ChannelGroup]:
        """Returns the groups with how many units each must keep."""
        units = {unit for ids in self.mode.many for unit in unit_of_label[ids].tolist()}
        return [
            replace(group, least=2) if first_unit[group.name] in units else group
            for group in groups
        ]

    def _frozen(self) -> dict[str, str]:
        frozen: dict[str, str] = {}
        tables = [
            name
            for name, tensor in self.tensors.items()
            if id(tensor) in self.mode.tables and name not in self.order
        ]
        for name in (*self.order, *tables):
            layer = layer_name(name)
            outputs = self.mode.output_labels(self.tensors[name])
            if name in tables:
                outputs = outputs[1:]
            reason = self.table.first_reason(outputs[0].tolist()) if outputs else None
            if not outputs:
                reason = "its weight is not understood"
            if reason is not None:
                frozen.setdefault(layer, reason)
        for call in self.mode.calls:
            if call.operation:
                frozen.setdefault(call.module, f"the cost of its {call.operation} is fixed")
            elif call.weight is None and not call.factors:
                frozen.setdefault(call.module, "its weight is computed")
        return {**self.unseen, **frozen}


def _units(labels: Mapping[str, Tensor], unit_of_label: Tensor) -> dict[str, Tensor]:
    """Returns the units of some labels, of those modules of which some are cut."""
    units = {name: unit_of_label[ids] for name, ids in labels.items()}
    return {name: found for name, found in units.items() if bool(found.any())}
