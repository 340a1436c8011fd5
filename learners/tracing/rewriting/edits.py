"""Finds the operations of a traced forward that a cut would break, and what replaces them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tracing.rewriting.forward_tracing import (
    EQUIVARIANT,
    Record,
    function_name,
)
from amc_compress.learners.tracing.rewriting.rewrite import (
    SPLITS,
    Constants,
    Edit,
    Move,
    Replay,
    Sizes,
    Units,
    is_reshape,
    sizes_of,
)
from amc_compress.learners.tracing.rewriting.symbolic_forward import Variant

# Operations in which a number is a number, whatever it was computed from.
_ARITHMETIC = frozenset(
    (
        *("add", "sub", "rsub", "mul", "multiply", "div", "divide", "truediv", "pow"),
        *("iadd", "isub", "imul", "itruediv", "scaled_dot_product_attention"),
    )
)


class Planner:
    """Plans the replacements in one variant of a module, for some of its calls.

    Args:
        variant: The variant.
        calls: Executions of it, and the units of what they saw.
        cuts: Cuts to replay, each a mask of the units that stay.
    """

    def __init__(
        self,
        variant: Variant,
        calls: Sequence[tuple[Record, Units]],
        cuts: Sequence[Tensor],
    ) -> None:
        self.variant = variant
        self.module = variant.graph_module
        self.calls = calls
        self.records = [record for record, _ in calls]
        self.units = [units for _, units in calls]
        self.record = self.records[0]
        self.cuts = cuts
        self.replays: list[Replay] = []

    @cached_property
    def bad(self) -> set[fx.Node]:
        """Returns all nodes that some cut breaks.

        Which nodes those are is read off their structure; replaying some cuts finds, beyond that,
        numbers that were computed from a width.
        """
        bad: set[fx.Node] = set()
        for record, units in self.calls:
            for alive in self.cuts:
                replay = Replay(self.module, record, units, alive)
                replay.run(*self._inputs(record))
                bad |= replay.bad.keys()
                if record is self.record:
                    self.replays.append(replay)
        bad |= {node for node in self.record.labels if self._changed_numbers(node)}
        return bad | {node for node in self.record.movements if self._is_fragile(node)}

    def edits(self) -> list[Edit]:
        """Returns replacements for all nodes that some cut breaks."""
        bad = self.bad
        found = (self._edit(node) for node in self.module.graph.nodes if node in bad)
        return [edit for edit in found if edit is not None]

    def kinds(self) -> list[list[tuple[Record, Units]]]:
        """Returns the calls, those together in which the same units are in the same places."""
        kinds: list[list[tuple[Record, Units]]] = []
        for call in self.calls:
            for kind in kinds:
                if _are_cut_alike(kind[0][1], call[1]):
                    kind.append(call)
                    break
            else:
                kinds.append([call])
        return kinds

    def written(self, edits: Sequence[Edit]) -> list[fx.Node]:
        """Returns the numbers among the arguments that replacements no longer read.

        Heights and widths in a chain of movements are none: no channel depends on them.
        """
        found: dict[fx.Node, None] = {}
        for edit in edits:
            if isinstance(edit, Constants):
                continue
            if isinstance(edit, Sizes):
                given = sizes_of(edit.node, edit.units.dim())
                found |= dict.fromkeys(self._known(given[axis] for axis in edit.axes))
                continue
            chain, done = [edit.node], set(edit.sources)
            while chain:
                node = chain.pop()
                if node in done or node not in self.record.labels:
                    continue
                done.add(node)
                chain += node.all_input_nodes
                read: Iterable[Any] = node.all_input_nodes
                if is_reshape(node):
                    axes = self._channel_axes(node)
                    sizes = sizes_of(node, self.record.labels[node].dim())
                    read = [size for axis, size in enumerate(sizes) if axis in axes]
                found |= dict.fromkeys(self._known(read))
        return list(found)

    def _known(self, values: Iterable[Any]) -> list[fx.Node]:
        return [x for x in values if isinstance(x, fx.Node) and x in self.variant.known]

    def _inputs(self, record: Record) -> list[Any]:
        nodes = [node for node in self.module.graph.nodes if node.op == "placeholder"]
        return [record.values.get(node) for node in nodes]

    # ------------------------------------------------------------------ one node

    def _edit(self, node: fx.Node) -> Edit | None:
        if numbers := self._changed_numbers(node):
            return Constants(node, numbers)
        if self._is_lost(node):
            return None  # its users are rewritten from earlier tensors
        return self._resize(node) or self._move(node)

    def _changed_numbers(self, node: fx.Node) -> dict[fx.Node, float]:
        """Returns the numbers in an arithmetic operation that some cut changes."""
        if function_name(node) not in _ARITHMETIC:
            return {}
        numbers = {
            earlier: value
            for earlier in node.all_input_nodes
            if isinstance(value := self.record.values.get(earlier), (int, float))
        }
        return {
            earlier: value
            for earlier, value in numbers.items()
            if any(replay.env.get(earlier) != value for replay in self.replays)
            and all(record.values.get(earlier) == value for record in self.records)
        }

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
        if any(self._is_lost(x) for x in earlier):
            return True
        if is_reshape(node):
            return not self._has_sizes_of_tensors(node)
        if name == "getitem":
            return self._indexes_channels(node.args[1], self._channel_axes(earlier[0]))
        if name == "pad":
            return self._pads_channels(node, self._channel_axes(earlier[0]))
        return name not in EQUIVARIANT

    def _has_sizes_of_tensors(self, node: fx.Node) -> bool:
        """Whether a reshape reads its numbers of channels off tensors: they follow every cut."""
        given = sizes_of(node, self.record.labels[node].dim())
        if len(given) != self.record.labels[node].dim():
            return False
        found = [given[axis] for axis in self._channel_axes(node)]
        kept = -1 if function_name(node) == "expand" else None  # the size that was there
        return all(
            x not in self.variant.known if isinstance(x, fx.Node) else x == kept for x in found
        )

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

    def _pads_channels(self, node: fx.Node, axes: Collection[int]) -> bool:
        pads = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        if not isinstance(pads, (tuple, list)):
            return True
        last = self.record.labels[node].dim() - 1
        return any(pad != 0 for axis in axes for pad in pads[2 * (last - axis) :][:2])

    def _unit(self, node: fx.Node) -> Tensor:
        """Unit of every coordinate of a tensor."""
        units = self.units[0].compacted[node]
        assert isinstance(units, Tensor)
        return units.expand(self.record.labels[node].shape)

    def _resize(self, node: fx.Node) -> Sizes | None:
        source = node.args[0]
        if not is_reshape(node) or not isinstance(source, fx.Node) or self._is_lost(source):
            return None
        given = sizes_of(node, self.record.labels[node].dim())
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


def _are_cut_alike(first: Units, second: Units) -> bool:
    return all(
        torch.equal(a, b)
        for node, units in first.compacted.items()
        for a, b in zip(tree_leaves(units), tree_leaves(second.compacted[node]), strict=True)
        if isinstance(a, Tensor)
    )
