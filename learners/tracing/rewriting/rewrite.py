"""Rewrites a module's forward where it has channel numbers baked in.

``F.pad`` on channels, ``chunk``, a channel shuffle's ``view`` or a reshape into heads are right for
the original widths only. The forward of the one module that does such a thing is traced with
``torch.fx``; the operations that a cut would break are found by replaying the graph on labels; and
they are replaced by ones whose numbers are read from the module, where surgery writes them:

* a reshape whose kept coordinates form a box gets new sizes;
* a chain of data movements that only reorders, drops or pads channels becomes one
  :func:`move_channels`.

The module keeps its class (a subclass of it), its attributes and its state-dict keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from operator import getitem, setitem
from types import SimpleNamespace
from typing import Any, cast

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from amc_compress.learners.tracing.labels.labels import compact
from amc_compress.learners.tracing.rewriting.forward_tracing import Record, function_name

_RESHAPES = frozenset(("view", "reshape", "expand", "_unsafe_view"))
SPLITS = frozenset(("chunk", "split", "tensor_split", "split_with_sizes"))
LOST = object()  # stands for a tensor that has no rectangular shape after a cut


def move_channels(
    sources: Sequence[Tensor],
    axis: int,
    span: tuple[int, int] | None,
    pads: tuple[int, int],
    index: Tensor | None,
) -> Tensor:
    """Returns channels of the concatenated sources: a span of them, zero-padded, then gathered."""
    joined = sources[0] if len(sources) == 1 else torch.cat(list(sources), axis)
    if span is not None:
        joined = joined.narrow(axis, span[0], span[1])
    if pads != (0, 0):
        joined = F.pad(joined, [0, 0] * (joined.dim() - 1 - axis) + list(pads))
    return joined if index is None else joined.index_select(axis, index)


# ---------------------------------------------------------------------- what a cut leaves


def box(units: Tensor, alive: Tensor) -> list[Tensor] | None:
    """Returns the kept coordinates per axis, None if what stays is not rectangular.

    Args:
        units: Unit of every coordinate, compacted or not.
        alive: Which units stay, shape ``(n_units,)``.
    """
    if not units.numel():
        return [torch.arange(size) for size in units.shape]
    stays = alive[compact(units)]
    kept = []
    count = 1
    for axis in range(units.dim()):
        others = [other for other in range(units.dim()) if other != axis]
        line = stays.amax(others) if others else stays
        count *= int(line.sum())
        if len(line) != units.shape[axis]:
            line = line.expand(units.shape[axis])
        kept.append(line.nonzero()[:, 0])
    return kept if count == int(stays.sum()) else None


@dataclass
class Units:
    """Units of every coordinate that one execution of a module has seen, compacted.

    Args:
        compacted: Node -> units (tensors in the structure of the node's value).
    """

    compacted: dict[fx.Node, Any]


def cut(labels: Tensor, units: Tensor, alive: Tensor) -> Any:
    """Returns the labels that stay, ``LOST`` if they are not rectangular."""
    kept = box(units.expand(labels.shape), alive)
    if kept is None:
        return LOST
    for axis, index in enumerate(kept):
        if len(index) != labels.shape[axis]:
            labels = labels.index_select(axis, index)
    return labels


class Replay(fx.Interpreter):
    """Replays a graph on the labels that a cut leaves, and finds the nodes that go wrong.

    Args:
        module: The traced module.
        record: Its recorded execution.
        units: The units of what it saw.
        alive: Which units stay.
    """

    def __init__(self, module: fx.GraphModule, record: Record, units: Units, alive: Tensor) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.record = record
        self.bad: dict[fx.Node, tuple[Any, ...]] = {}  # node -> its arguments in this cut
        self.expected = {
            node: tree_map(
                lambda x, y: cut(x, y, alive) if isinstance(x, Tensor) else x,
                labels,
                units.compacted[node],
            )
            for node, labels in record.labels.items()
        }

    def run_node(self, n: fx.Node) -> Any:
        """Returns what the node should yield; executes what moves data or is a number."""
        if n not in self.expected:
            # What is written into is no label, and labels must not be written into.
            inert = n.op in ("placeholder", "get_attr", "call_module", "output")
            if inert or n.target is setitem:
                return self.record.values.get(n)
            try:
                return super().run_node(n)
            except Exception:  # a number that is computed from a lost tensor
                return LOST
        expected = self.expected[n]
        if n in self.record.movements:
            try:
                good = _agree(super().run_node(n), expected)
            except Exception:
                good = False
            if not good or any(self._is_broken_tuple(earlier) for earlier in n.all_input_nodes):
                args, kwargs = self.fetch_args_kwargs_from_env(n)
                self.bad[n] = (*args, *kwargs.values())
        return expected

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Executes a method; labels lie otherwise in memory than the data that can be viewed."""
        return super().call_method("reshape" if target == "view" else target, args, kwargs)

    def _is_broken_tuple(self, node: fx.Node) -> bool:
        """Whether a node yields several wrong tensors: then its users are what is replaced."""
        return node in self.bad and not isinstance(self.record.labels[node], Tensor)


def _agree(got: Any, expected: Any) -> bool:
    pairs = zip(tree_leaves(got), tree_leaves(expected), strict=True)
    return all(
        b is not LOST and a.shape == b.shape and bool(((a == b) | (a == 0)).all())
        for a, b in pairs
        if isinstance(a, Tensor)
    )


# ---------------------------------------------------------------------- what replaces a node


def _name_only(node: fx.Node) -> fx.Node:
    return cast(fx.Node, SimpleNamespace(name=node.name))


@dataclass
class Sizes:
    """A reshape whose sizes along some axes are read from the module.

    Args:
        node: The reshape.
        axes: Those axes.
        units: Unit of every coordinate of its result.
        prefix: Start of the names of the attributes that hold its numbers.
    """

    node: fx.Node
    axes: list[int]
    units: Tensor
    prefix: str = "_cut"

    def attributes(self, alive: Tensor) -> dict[str, Any]:
        """Returns the numbers that the rewritten forward reads."""
        kept = box(self.units, alive)
        assert kept is not None, "a reshape whose result is not rectangular"
        return {self._name(axis): len(kept[axis]) for axis in self.axes}

    def _name(self, axis: int) -> str:
        return f"{self.prefix}_{self.node.name}_{axis}"

    def detached(self) -> Sizes:
        """Returns a copy without the graph, which can no longer be applied but pickles."""
        return replace(self, node=_name_only(self.node))

    def apply(self, graph: fx.Graph, node: fx.Node) -> None:
        """Puts the reads into a copy of the graph."""
        sizes = list(sizes_of(node))
        with graph.inserting_before(node):
            if len(sizes) < self.units.dim():  # a computed torch.Size
                sizes = [graph.call_function(getitem, (sizes[0], axis))
                         for axis in range(self.units.dim())]  # fmt: skip
            for axis in self.axes:
                sizes[axis] = graph.create_node("get_attr", self._name(axis))
        node.args = (node.args[0], *sizes) if node.op == "call_method" else (node.args[0], sizes)
        node.kwargs = {}


@dataclass
class Constants:
    """Arithmetic with numbers of channels, which stay what they are in the original.

    As the scale of attention does, where it is computed from the width of the embedding.

    Args:
        node: The operation.
        values: What computes such a number -> the number.
        prefix: Not used, as there is nothing to read from the module.
    """

    node: fx.Node
    values: dict[fx.Node, float]
    prefix: str = "_cut"

    def attributes(self, alive: Tensor) -> dict[str, Any]:
        """Returns nothing."""
        return {}

    def detached(self) -> Constants:
        """Returns a copy without the graph, which can no longer be applied but pickles."""
        return replace(self, node=_name_only(self.node), values={})

    def apply(self, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> None:
        """Writes the numbers into a copy of the operation."""
        known = {copies[number]: value for number, value in self.values.items()}
        node.args = fx.map_arg(node.args, lambda x: known.get(x, x))
        node.kwargs = fx.map_arg(node.kwargs, lambda x: known.get(x, x))


@dataclass
class Move:
    """A chain of data movements that is one :func:`move_channels` of earlier tensors.

    Args:
        node: The end of the chain.
        sources: The tensors it starts from.
        axis: The channel axis.
        origin: Source coordinate of every output channel, -1 for padding.
        units: Unit of every output channel.
        source_units: Unit of every source channel.
        prefix: Start of the names of the attributes that hold its numbers.
    """

    node: fx.Node
    sources: list[fx.Node]
    axis: int
    origin: Tensor
    units: Tensor
    source_units: Tensor
    prefix: str = "_cut"

    def attributes(self, alive: Tensor) -> dict[str, Any]:
        """Returns span, padding and index after a cut."""
        stays = alive[self.source_units]
        rank = stays.cumsum(0) - 1
        origin = self.origin[alive[self.units]]
        index = torch.where(origin < 0, -1, rank[origin.clamp(min=0)])
        inside = (index >= 0).nonzero()[:, 0]
        n_sources = int(stays.sum())
        span: tuple[int, int] | None = None
        pads = (0, 0)
        if len(inside):
            first, last = int(inside[0]), int(inside[-1])
            start = int(index[first])
            middle = index[first : last + 1]
            if torch.equal(middle, torch.arange(start, start + len(middle))):
                if len(middle) != n_sources:
                    span = (start, len(middle))
                return self._named(span, (first, len(index) - 1 - last), None)
        if bool((index < 0).any()):
            pads = (0, 1)
            index = torch.where(index < 0, n_sources, index)
        return self._named(span, pads, index)

    def detached(self) -> Move:
        """Returns a copy without the graph, which can no longer be applied but pickles."""
        return replace(self, node=_name_only(self.node), sources=[])

    def _named(self, *values: Any) -> dict[str, Any]:
        names = (f"{self.prefix}_{self.node.name}_{part}" for part in ("span", "pads", "index"))
        return dict(zip(names, values, strict=True))

    def apply(self, graph: fx.Graph, node: fx.Node, copies: Mapping[fx.Node, fx.Node]) -> fx.Node:
        """Puts the movement into a copy of the graph."""
        sources = [copies[source] for source in self.sources]
        with graph.inserting_before(node):
            reads = [graph.create_node("get_attr", name) for name in self._named(0, 0, 0)]
            moved = graph.call_function(move_channels, (sources, self.axis, *reads))
        node.replace_all_uses_with(moved)
        return moved


Edit = Sizes | Constants | Move


def sizes_of(node: fx.Node, dims: int = 1) -> tuple[Any, ...]:
    """Returns the sizes that a reshape is given: numbers, or nodes that compute them.

    Args:
        node: The reshape.
        dims: Of its result; a node that computes all sizes stands for each of them.
    """
    rest = list(node.args[1:])
    for key in ("shape", "size"):
        if key in node.kwargs:
            rest.append(node.kwargs[key])
    if len(rest) == 1 and isinstance(rest[0], (tuple, list)):
        return tuple(rest[0])
    return tuple(rest * dims if len(rest) == 1 and isinstance(rest[0], fx.Node) else rest)


def is_reshape(node: fx.Node) -> bool:
    """Whether a node takes the sizes of its result as arguments."""
    return function_name(node) in _RESHAPES and all(
        isinstance(s, (int, fx.Node)) for s in sizes_of(node)
    )
