"""The facts about a network that the environment needs: widths, costs, parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.labels.counting import stored_buffers
from amc_compress.learners.tracing.labels.label_rules import LabelMode
from amc_compress.learners.tracing.labels.label_state import Call
from amc_compress.learners.tracing.labels.labels import varies
from amc_compress.learners.tracing.slots import Slot, layer_name
from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.validation.sentences import some


class LayerFacts:
    """Writes down a network whose groups are known.

    Args:
        model: The network.
        mode: The mode that watched its run.
        batch: Batch size of the run.
        groups: Its channel groups.
        unit_of_label: Unit of every label, 0 for none; units are numbered group by group.
        usual: Weights that run outside of training, too.
    """

    def __init__(
        self, model: nn.Module, mode: LabelMode, batch: int, groups: Sequence[ChannelGroup],
        unit_of_label: Tensor, usual: Set[str],
    ) -> None:  # fmt: skip
        self.model = model
        self.mode = mode
        self.batch = batch
        self.groups = groups
        self.unit_of_label = unit_of_label
        self.usual = usual
        self.tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        self.widths = _Widths(groups)
        # Those that no layer multiplies with as well.
        self.tables = [
            name
            for name, parameter in model.named_parameters()
            if id(parameter) in mode.tables and parameter.dim() == 2 and name not in usual
        ]
        self.own_biases = _own_biases([call for call in mode.calls if not call.training])

    def graph(self, slots: Sequence[Slot], frozen: Mapping[str, str]) -> LayerGraph:
        """Returns the graph.

        Args:
            slots: All labelled axes.
            frozen: Layer -> why its channels stay whole.
        """
        axes = {(slot.name, slot.axis): self.widths.of(slot.units) for slot in slots}
        layers = self._layers(axes)
        parameters = self._channel_parameters(slots)
        full = {group.name: float(group.size) for group in self.groups}
        counted = sum(layer.weights(full) + layer.has_bias * layer.out_width.at(full)
                      for layer in layers if layer.has_weights)  # fmt: skip
        counted += sum(entry.n_parameters * entry.width.at(full) for entry in parameters)
        buffers = sum(entry.n_buffers * entry.width.at(full) for entry in parameters)
        total = sum(tensor.numel() for tensor in self.model.parameters())
        stored = stored_buffers(self.model).values()
        buffer_bytes = sum(t.numel() * t.element_size() for t in stored)
        return LayerGraph(
            tuple(layers), tuple(self.groups), tuple(parameters), round(total - counted),
            round(buffer_bytes - 4 * buffers), dict(frozen), self._notes(total),
            tuple(layer_name(name) for name in self.mode.computed_layers),
        )  # fmt: skip

    def _notes(self, total: int) -> tuple[str, ...]:
        """Says which parameters the example has not used: costs leave their work out."""
        idle = {
            name: parameter.numel()
            for name, parameter in self.model.named_parameters()
            if id(parameter) not in self.mode.touched_by_example
        }
        if not idle:
            return ()
        names = list(dict.fromkeys(name.rpartition(".")[0] or name for name in idle))
        return (
            f"{sum(idle.values()) / total:.1%} of the parameters did nothing on the example"
            f" ({some(names)}): their multiply-adds count nothing, so that costs"
            f" are those of the run that was seen.",
        )

    def _layers(self, axes: Mapping[tuple[str, int], Width]) -> list[LayerSpec]:
        specs: dict[str, LayerSpec] = {}
        tables = self._tables(axes)
        for place, call in enumerate(self.mode.calls):
            specs.update(tables.pop(place, {}))
            if call.training or (call.case and call.weight is None):
                continue
            if call.operation:
                self._add_fixed(specs, call)
                continue
            if call.weight is None:
                spec = self._product(call)
                count = 2
                while spec.name in specs:
                    spec = replace(spec, name=f"{spec.name.partition('#')[0]}#{count}")
                    count += 1
                specs[spec.name] = spec
                continue
            name = self.mode.parameters[id(call.weight)]
            layer = layer_name(name)
            # What other cases run is stored, but is no work on the example.
            positions = 0 if call.case else call.positions // self.batch
            if layer in specs and specs[layer].has_weights:
                old = specs[layer]
                specs[layer] = replace(old, positions=old.positions + positions)
                continue
            outputs, inputs = (
                axes.get((name, axis), Width(call.shape[axis]))
                for axis in ((1, 0) if call.is_transposed else (0, 1))
            )
            specs[layer] = LayerSpec(
                layer, self._kind(name, call), inputs, outputs, call.kernel,
                call.stride, call.groups, positions, id(call.weight) in self.own_biases,
                call.input_size,
            )  # fmt: skip
        for rest in tables.values():
            specs.update(rest)
        return list(specs.values())

    def _tables(self, axes: Mapping[tuple[str, int], Width]) -> dict[int, dict[str, LayerSpec]]:
        """Returns the tables of embeddings, by how many calls came before each."""
        found: dict[int, dict[str, LayerSpec]] = {}
        for name in self.tables:
            weight, layer = self.tensors[name], layer_name(name)
            outputs = axes.get((name, 1), Width(weight.shape[1]))
            spec = LayerSpec(layer, "embedding", Width(weight.shape[0]), outputs, positions=0)
            found.setdefault(self.mode.tables[id(weight)], {})[layer] = spec
        return found

    def _kind(self, name: str, call: Call) -> str:
        module, _, tensor = name.rpartition(".")
        inside = isinstance(self.model.get_submodule(module), nn.RNNBase)
        if inside and (not tensor.startswith("weight_ih") or tensor.endswith("_reverse")):
            return "recurrent"
        return "conv" if call.kernel else "linear"

    def _add_fixed(self, specs: dict[str, LayerSpec], call: Call) -> None:
        """Adds what an operation without a rule costs; a module's calls of it are one entry."""
        name = f"{call.module}.{call.operation}".lstrip(".")
        macs = -(-call.macs // self.batch)
        if name in specs:
            macs += specs[name].in_width.fixed
        specs[name] = LayerSpec(name, "fixed", Width(macs), Width(1))

    def _product(self, call: Call) -> LayerSpec:
        name = f"{call.module}.product".lstrip(".")
        if not call.factors:  # a layer whose weight is computed from something else
            rows, columns = call.shape[:2]
            return LayerSpec(
                name, "matmul", Width(columns), Width(rows), call.kernel, call.stride, 1,
                call.positions // self.batch, False, call.input_size,
            )  # fmt: skip
        factors = self._factors(call)
        moving = [width for width in factors if width.terms]
        fixed = [width for width in factors if not width.terms]
        ordered = (*moving, *sorted(fixed, key=lambda width: -width.fixed))
        positions = 1
        for width in ordered[2:]:
            positions *= width.fixed
        first, second = ordered[:2]
        positions = positions // self.batch if positions % self.batch == 0 else positions
        return LayerSpec(name, "matmul", first, second, positions=positions)

    def _factors(self, call: Call) -> list[Width]:
        """Returns the width of batch, rows, inner and columns of a product."""
        factors = []
        for size, labels in zip(call.shape, call.factors, strict=True):
            units = None if labels is None else self.unit_of_label[labels.expand(size)]
            # Channels that are tied along an axis leave with the axis that tells them apart.
            separate = units is not None and varies(units, 0)
            factors.append(self.widths.of(units) if separate and units is not None else Width(size))
        return factors

    def inseparable_labels(self) -> list[int]:
        """Returns labels of products whose size is not a product of two widths."""
        for call in self.mode.calls:
            if call.factors and not call.case:
                factors = self._factors(call)
                full = {group.name: float(group.size) for group in self.groups}
                exact = all(w.at(full) == size for w, size in zip(factors, call.shape, strict=True))
                if sum(bool(width.terms) for width in factors) > 2 or not exact:
                    known = [labels.reshape(-1) for labels in call.factors if labels is not None]
                    return sorted(set(torch.cat(known).tolist()))
        return []

    def _channel_parameters(self, slots: Sequence[Slot]) -> list[ChannelParameters]:
        entries: dict[tuple[str, Width], list[int]] = {}
        stored, own = stored_buffers(self.model), self.own_biases.values()
        for slot in slots:
            tensor = self.tensors[slot.name]
            if slot.name in self.usual or slot.name in self.tables or id(tensor) in own:
                continue  # counted with its layer
            if id(tensor) in self.mode.axis_labels and not bool((slot.units > 0).any()):
                continue
            if not isinstance(tensor, nn.Parameter) and (
                tensor.element_size() % 4 or slot.name not in stored
            ):
                continue
            counts = entries.setdefault(
                (slot.module or slot.name, self.widths.of(slot.units)), [0, 0]
            )
            per_channel = tensor.numel() // tensor.shape[slot.axis]
            if isinstance(tensor, nn.Parameter):
                counts[0] += per_channel
            else:
                counts[1] += per_channel * tensor.element_size() // 4
        return [
            ChannelParameters(name, width, parameters, buffers)
            for (name, width), (parameters, buffers) in entries.items()
        ]


def _own_biases(calls: Sequence[Call]) -> dict[int, int]:
    """Returns ``id(weight) -> id(bias)`` of the biases that are counted with their layers.

    That is the first one of every weight; further ones, of layers that share the weight, are
    parameters of the channels. A bias that layers share is that of the first.
    """
    owners: dict[int, int] = {}
    weights: set[int] = set()
    for call in calls:
        if call.weight is not None and id(call.weight) not in weights:
            weights.add(id(call.weight))
            # Groups of a transposed convolution have a bias each for the outputs that they share.
            outputs = call.shape[1 if call.is_transposed else 0]
            if (
                call.bias is not None
                and id(call.bias) not in owners.values()
                and call.bias.numel() == outputs
            ):
                owners[id(call.weight)] = id(call.bias)
    return owners


class _Widths:
    """Counts coordinates per group."""

    def __init__(self, groups: Sequence[ChannelGroup]) -> None:
        self.names = [group.name for group in groups]
        sizes = torch.tensor([1, *(group.size for group in groups)])
        self.starts = sizes.cumsum(0)  # of each group, and the end of the last

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
