"""Decides which operations of a traced module are replaced, and makes the class that does it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from learners.forward_tracing import EQUIVARIANT, Record, TracedForward, function_name
from learners.labels import compact
from learners.rewriting import (
    SPLITS,
    Move,
    Replay,
    Sizes,
    Units,
    is_reshape,
    sizes_of,
)
from learners.rewritten_class import Recipe, rebuild_class

# Cuts of single groups that one module replays: enough to tell its mistakes, few for a DenseNet.
_MAX_ALONE = 8


@dataclass
class Rewrite:
    """A module whose forward is replaced in sliced copies.

    Args:
        name: Qualified module name.
        cls: The class that its copies get.
        edits: What computes the numbers that the new forward reads.
    """

    name: str
    cls: Any
    edits: list[Sizes | Move]

    def apply(self, module: nn.Module, alive: Tensor, device: torch.device) -> None:
        """Turns a copied module into one that works at the cut widths."""
        module.__class__ = self.cls
        for edit in self.edits:
            for key, value in edit.attributes(alive).items():
                if isinstance(value, Tensor):
                    module.register_buffer(key, value.to(device), persistent=False)
                else:
                    setattr(module, key, value)

    def __reduce__(self) -> Any:
        # Neither the made class nor graph nodes pickle; the one is rebuilt from its source, and of
        # the others nothing but the name is read once that source is written.
        edits = [edit.detached() for edit in self.edits]
        return _restore_rewrite, (self.name, self.cls._recipe, edits)


def plan_rewrite(
    name: str,
    traced: TracedForward,
    unit_of_label: Tensor,
    joint: Sequence[Tensor],
    alone: Sequence[Tensor],
) -> Rewrite | None:
    """Returns the rewrite that a module needs, None if it needs none or none is known.

    Args:
        name: Qualified module name.
        traced: The module's graph and its recorded executions.
        unit_of_label: Unit of every label.
        joint: Some cuts to replay, each a mask of the units that stay.
        alone: Cuts of one group each; the module replays some of those that touch it.
    """
    if traced.graph_module is None or traced.failed or not traced.records:
        return None
    units = [
        Units({node: tree_map(lambda x: _units(x, unit_of_label), labels)
               for node, labels in record.labels.items()})
        for record in traced.records
    ]  # fmt: skip
    present = torch.zeros(len(joint[0]), dtype=torch.bool)
    for leaf in tree_leaves([record.compacted for record in units]):
        if isinstance(leaf, Tensor):
            present[leaf.reshape(-1)] = True
    touching = [alive for alive in alone if bool((present & ~alive).any())]
    if not touching:
        return None
    cuts = [*joint, *touching[:: -(-len(touching) // _MAX_ALONE)]]
    planner = _Planner(traced.graph_module, traced.records, units, cuts)
    edits = planner.edits()
    if not edits:
        return None
    return Rewrite(name, _rewritten_class(traced.module, traced.graph_module.graph, edits), edits)


def _units(leaf: Any, unit_of_label: Tensor) -> Any:
    # Compacted twice: labels that differ may belong to one unit.
    return compact(unit_of_label[compact(leaf)]) if isinstance(leaf, Tensor) else leaf


class _Planner:
    def __init__(
        self,
        module: fx.GraphModule,
        records: Sequence[Record],
        units: Sequence[Units],
        cuts: Sequence[Tensor],
    ) -> None:
        self.module = module
        self.records = records
        self.units = units
        self.record = records[0]
        self.cuts = cuts
        self.replays: list[Replay] = []

    def edits(self) -> list[Sizes | Move]:
        """Returns replacements for all nodes that some cut breaks.

        Which nodes those are is read off their structure; replaying some cuts finds, beyond that,
        numbers that were computed from a width.
        """
        bad: set[fx.Node] = set()
        for record, units in zip(self.records, self.units, strict=True):
            for alive in self.cuts:
                replay = Replay(self.module, record, units, alive)
                replay.run(*self._inputs(record))
                bad |= replay.bad.keys()
                if record is self.record:
                    self.replays.append(replay)
        bad |= {node for node in self.record.movements if self._is_fragile(node)}
        if bad and not self._calls_agree():
            return []
        found = (self._edit(node) for node in self.module.graph.nodes if node in bad)
        return [edit for edit in found if edit is not None]

    def _inputs(self, record: Record) -> list[Any]:
        nodes = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return [record.values.get(node) for node in nodes]

    def _calls_agree(self) -> bool:
        """Whether a module that is called several times is cut in the same way every time."""
        return all(
            torch.equal(a, b)
            for other in self.units[1:]
            for node, units in self.units[0].compacted.items()
            for a, b in zip(tree_leaves(units), tree_leaves(other.compacted[node]), strict=True)
            if isinstance(a, Tensor)
        )

    # ------------------------------------------------------------------ one node

    def _edit(self, node: fx.Node) -> Sizes | Move | None:
        if self._is_lost(node):
            return None  # its users are rewritten from earlier tensors
        return self._resize(node) or self._move(node)

    def _channel_axes(self, node: fx.Node) -> set[int]:
        """Returns the axes along which the units of any tensor of a node differ."""
        leaves = tree_leaves(self.units[0].compacted[node])
        return {
            axis
            for units in leaves
            if isinstance(units, Tensor)
            for axis, size in enumerate(units.shape)
            if size > 1
        }

    def _is_lost(self, node: fx.Node) -> bool:
        """Whether some cut leaves of a node what no tensor can hold, or it holds several."""
        return not isinstance(self.record.labels[node], Tensor) or len(self._channel_axes(node)) > 1

    def _is_fragile(self, node: fx.Node) -> bool:
        """Whether a movement is right for some cuts only, whatever the replayed ones say."""
        earlier = [x for x in node.all_input_nodes if x in self.record.labels]
        if self._is_lost(node) or not any(self._channel_axes(x) for x in (node, *earlier)):
            return False
        name = function_name(node)
        if name == "getitem" and self._is_tuple(earlier[0]):
            return self._splits_channels(earlier[0])
        if any(self._is_lost(x) for x in earlier) or is_reshape(node):
            return True
        if name == "getitem":
            return self._indexes_channels(node.args[1], self._channel_axes(earlier[0]))
        return name not in EQUIVARIANT

    def _is_tuple(self, node: fx.Node) -> bool:
        return not isinstance(self.record.labels[node], Tensor)

    def _splits_channels(self, node: fx.Node) -> bool:
        source = node.args[0] if node.args else None
        if function_name(node) not in SPLITS or not isinstance(source, fx.Node):
            return False
        axis = node.kwargs.get("dim", node.args[2] if len(node.args) > 2 else 0)
        if self._is_lost(source) or not isinstance(axis, int):
            return True
        return axis % self.record.labels[source].dim() in self._channel_axes(source)

    @staticmethod
    def _indexes_channels(index: Any, axes: Collection[int]) -> bool:
        parts = index if isinstance(index, tuple) else (index,)
        if any(part is None or part is Ellipsis for part in parts):
            return any(part not in (None, Ellipsis, slice(None)) for part in parts)
        return any(axis < len(parts) and parts[axis] != slice(None) for axis in axes)

    def _unit(self, node: fx.Node) -> Tensor:
        """Unit of every coordinate of a tensor."""
        units = self.units[0].compacted[node]
        assert isinstance(units, Tensor)
        return units.expand(self.record.labels[node].shape)

    def _resize(self, node: fx.Node) -> Sizes | None:
        source = node.args[0]
        if not is_reshape(node) or not isinstance(source, fx.Node) or self._is_lost(source):
            return None
        given = sizes_of(node)
        if len(given) != self.record.labels[node].dim():
            return None
        # Sizes that follow a cut, and others that were computed from such a size.
        axes = {axis for axis in self._channel_axes(node) if given[axis] != -1}
        for replay in self.replays:
            if node in replay.bad:
                values = tree_leaves(replay.bad[node][1:])
                want = replay.expected[node].shape
                axes |= {i for i, size in enumerate(values) if size not in (-1, want[i])}
        for replay in self.replays:
            before, want = replay.expected[source], replay.expected[node]
            if before.numel() != want.numel() or not torch.equal(before.reshape(want.shape), want):
                return None
        return Sizes(node, sorted(axes), self._unit(node)) if axes else None

    # ------------------------------------------------------------------ channel movements

    def _move(self, node: fx.Node) -> Move | None:
        sources: list[fx.Node] = []
        if not self._find_sources(node, sources, is_end=True) or not sources:
            return None
        numbers: dict[fx.Node, Any] = {}
        start = 1
        for source in sources:
            shape = self.record.labels[source].shape
            numbers[source] = torch.arange(start, start + shape.numel()).view(shape)
            start += shape.numel()
        try:
            moved = self._execute(node, numbers)
        except Exception:  # a chain that does not run on numbers is left alone
            return None
        # What stays of a movable source may be of fixed width.
        axes = self._channel_axes(node) or set.union(*map(self._channel_axes, sources))
        if len(axes) != 1 or not isinstance(moved, Tensor):
            return None
        return self._regular(node, sources, axes.pop(), moved, [numbers[s] for s in sources])

    def _find_sources(self, node: fx.Node, sources: list[fx.Node], is_end: bool = False) -> bool:
        """Collects the nearest earlier tensors that stay rectangular; False if there are none."""
        if not is_end and node in self.record.labels and not self._is_lost(node):
            if node not in sources:
                sources.append(node)
            return True
        if node not in self.record.movements:
            return False
        inputs = [earlier for earlier in node.all_input_nodes if earlier in self.record.labels]
        return all(self._find_sources(earlier, sources) for earlier in inputs)

    def _execute(self, node: fx.Node, numbers: dict[fx.Node, Any]) -> Any:
        if node not in numbers:

            def value(earlier: fx.Node) -> Any:
                if earlier in self.record.labels:
                    return self._execute(earlier, numbers)
                return self.record.values[earlier]

            args = fx.map_arg(node.args, value)
            kwargs = fx.map_arg(node.kwargs, value)
            if node.op == "call_method":
                numbers[node] = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                assert callable(node.target)
                numbers[node] = node.target(*args, **kwargs)
        return numbers[node]

    def _regular(
        self, node: fx.Node, sources: list[fx.Node], axis: int, moved: Tensor, given: list[Tensor]
    ) -> Move | None:
        """Returns the move if every output channel is one whole source channel or padding."""
        if any(x.dim() != moved.dim() for x in given):
            return None
        rest = moved.movedim(axis, 0)[0].shape
        if any(x.movedim(axis, 0)[0].shape != rest for x in given):
            return None
        joined = torch.cat(given, axis).movedim(axis, 0).flatten(1)
        rows = moved.movedim(axis, 0).reshape(moved.shape[axis], -1)
        where = {int(value): index for index, value in enumerate(joined[:, 0].tolist())}
        origin = torch.tensor([where.get(int(value), -1) for value in rows[:, 0].tolist()])
        expected = torch.where(origin[:, None] < 0, 0, joined[origin.clamp(min=0)])
        if not torch.equal(expected, rows):
            return None
        source_units = [self._channel_units(source, axis) for source in sources]
        units = self._channel_units(node, axis)
        return Move(node, sources, axis, origin, units, torch.cat(source_units))

    def _channel_units(self, node: fx.Node, axis: int) -> Tensor:
        return self._unit(node).movedim(axis, 0).flatten(1)[:, 0]


# ---------------------------------------------------------------------- the new class


def _rewritten_class(
    module: nn.Module, graph: fx.Graph, edits: Sequence[Sizes | Move]
) -> type[nn.Module]:
    new = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    output = new.graph_copy(graph, copies)
    new.output(output)
    for edit in edits:
        node = copies[edit.node]
        if isinstance(edit, Sizes):
            edit.apply(new, node)
        else:
            copies[edit.node] = edit.apply(new, node, copies)
            copies[edit.node].meta["replaced"] = node
    _drop_unused(new, copies)
    return rebuild_class(type(module), *_source(new))


def _drop_unused(graph: fx.Graph, copies: Mapping[fx.Node, fx.Node]) -> None:
    """Removes what fed only replaced nodes; anything else may have effects and stays."""
    dead = [node.meta["replaced"] for node in copies.values() if "replaced" in node.meta]
    while dead:
        node = dead.pop()
        if node.users or node.op in ("placeholder", "call_module"):
            continue
        inputs = list(node.all_input_nodes)
        if node in graph.nodes:
            graph.erase_node(node)
            dead.extend(inputs)


def _source(graph: fx.Graph) -> tuple[str, dict[str, Any]]:
    code = graph.python_code("self")
    return code.src, dict(code.globals)


def _restore_rewrite(name: str, recipe: Recipe, edits: list[Sizes | Move]) -> Rewrite:
    return Rewrite(name, rebuild_class(recipe.base, recipe.source, recipe.names), edits)
