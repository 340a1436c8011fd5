"""Traces the forward of one module with ``torch.fx``, keeping its arguments free where it can.

A number, flag or None that is passed to a module is no constant of it: the next image has another
height. All of them enter the graph as arguments, together with the values of the call that was
traced. Where the code decides by one of them (``if groups > 1``), the decision becomes a condition
under which the graph holds. ``is None`` cannot be seen by any proxy: whether an argument may be
free is found by tracing both with it and with its value written in, which must yield the same
graph. What may not be free is a constant, and a condition too.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.utils._pytree import TreeSpec

from amc_compress.learners.tracing.rewriting.call_arguments import CallArguments
from amc_compress.learners.tracing.rewriting.symbolic_tracer import (
    UNKNOWN,
    Tracer,
    evaluated,
    keeps_functions,
    shape_of,
    shaped,
    tracing,
)

_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)


def by_mode(training: bool, in_training: Any, in_evaluation: Any) -> Any:
    """Returns the value that a constant has in the module's mode."""
    return in_training if training else in_evaluation


@dataclass(eq=False)
class Variant:
    """What a module computes for one kind of arguments.

    Args:
        graph_module: Its graph; children stay modules. The placeholders are the free leaves.
        spec: How the arguments are packed.
        names: What the leaves are called.
        free: Leaves that are placeholders, in order.
        constants: Other leaves -> the value that the graph holds for.
        present: Leaves for which the graph holds only if they are not None.
        known: Nodes that depend on no tensor -> their value in the call that was traced.
        guards: Nodes among them, and others that sizes of tensors decide -> the value that the
            graph holds for.
    """

    graph_module: fx.GraphModule
    spec: TreeSpec
    names: list[str]
    free: list[int]
    constants: dict[int, Any]
    present: list[int]
    known: dict[fx.Node, Any]
    guards: dict[fx.Node, Any]

    @property
    def decides_by_sizes(self) -> bool:
        """Whether it holds for tensors of some sizes only."""
        return bool(self.sizes)

    @property
    def sizes(self) -> tuple[bool, ...]:
        """The decisions by sizes that it holds for, in their order."""
        return tuple(value for node, value in self.guards.items() if node not in self.known)

    def numbers(self, leaves: Sequence[Any]) -> dict[fx.Node, Any]:
        """Returns the value of every number that a call's arguments alone decide."""
        values: dict[fx.Node, Any] = {}
        arguments = iter(self.free)
        shapes: dict[fx.Node, Any] = {}
        sized = self.guards.keys() - self.known.keys()
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                leaf = leaves[next(arguments)]
                shapes[node] = shape_of(leaf) if sized else None
                if node in self.known:
                    values[node] = leaf
            elif node in self.known:
                values[node] = evaluated(node, values)
            if sized and node.op != "placeholder":
                shapes[node] = shaped(node, shapes)
            if node in sized:
                values[node] = shapes[node]
        return values

    def takes(self, call: CallArguments) -> bool:
        """Whether the graph holds for a call."""
        leaves = call.leaves
        if call.spec != self.spec or any(leaves[index] is None for index in self.present):
            return False
        if not all(same(leaves[index], value) for index, value in self.constants.items()):
            return False
        values = self.numbers(leaves)
        return all(same(values[node], value) for node, value in self.guards.items())


def same(first: Any, second: Any) -> bool:
    """Whether two values are of one type and equal; symbolic numbers are of any type."""
    alike = type(first) is type(second) or isinstance(first, _SYMBOLIC)
    return first is second or (alike and bool(first == second))


# ---------------------------------------------------------------------- one module


@dataclass
class _Traced:
    graph: fx.Graph
    known: dict[fx.Node, Any]
    guards: dict[fx.Node, Any]


def trace_forward(module: nn.Module, call: CallArguments, sizes: Sequence[bool] = ()) -> Variant:
    """Returns the graph of a module's own forward for the arguments of one call.

    Args:
        module: The module.
        call: The call.
        sizes: The first decisions by the sizes of arguments, if they are not those of the call.

    Raises:
        ValueError: If it does something else in training mode, or changes the module.
        Exception: Whatever fx raises on a forward that it cannot follow.
    """
    before, buffers, training = dict(vars(module)), dict(module._buffers), module.training
    try:
        variant = _Chooser(module, call, sizes).variant()
        changed = any(vars(module).get(key, UNKNOWN) is not value
                      for key, value in before.items() if key != "training")  # fmt: skip
        if changed or len(vars(module)) != len(before) or len(module._buffers) != len(buffers):
            raise ValueError("it changes its module")
    finally:
        vars(module).clear()
        vars(module).update(before)
        module.training = training
        module._buffers.clear()
        module._buffers.update(buffers)
    return variant


def other_sizes(
    module: nn.Module, call: CallArguments, variant: Variant, at_most: int
) -> list[Variant]:
    """Returns the graphs for arguments of other sizes: with each decision the other way round.

    Args:
        module: The module.
        call: A call.
        variant: The graph for it.
        at_most: So many are looked for.
    """
    found: list[Variant] = []
    rest = [(variant, 0)]
    while rest and len(found) < at_most:
        known, start = rest.pop(0)
        decisions = known.sizes
        for index in range(start, len(decisions)):
            other = (*decisions[:index], not decisions[index])
            try:
                found.append(trace_forward(module, call, other))
            except Exception:  # nothing says that there are such arguments
                continue
            rest.append((found[-1], index + 1))
    return found


class _Chooser:
    """Finds which leaves of a call may be free."""

    def __init__(self, module: nn.Module, call: CallArguments, sizes: Sequence[bool]) -> None:
        self.module = module
        self.sizes = tuple(sizes)
        self.call = call
        self.tensors = {i for i in range(len(call.leaves)) if call.is_tensor(i)}
        self.follows_buffers = False  # buffers are no constants
        self.looks_inside = False  # see ``Tracer``

    def variant(self) -> Variant:
        """Returns the variant of the first way of tracing that works.

        One that keeps functions of a library as they are is the last that is taken.
        """
        found: Variant | None = None
        failure: Exception | None = None
        for self.follows_buffers, self.looks_inside in (
            (False, False),
            (True, False),
            (True, True),
        ):
            try:
                variant = self._variant()
            except Exception as error:
                failure = failure if self.looks_inside else error
                continue
            if self.looks_inside or not keeps_functions(variant.graph_module.graph):
                return variant
            found = found or variant
        if found is None:
            assert failure is not None
            raise failure
        return found

    def _variant(self) -> Variant:
        others = [i for i in range(len(self.call.leaves)) if i not in self.tensors]
        reference = self._trace(self.tensors)
        free = self._free(reference, others)
        traced = self._trace(free)
        try:
            _merge_modes(traced, self._trace(free, training=True))
        except ValueError:  # it decides by an argument in one mode only
            free, traced = self.tensors, reference
            _merge_modes(traced, self._trace(free, training=True))
        leaves = self.call.leaves
        present = [i for i in sorted(free) if leaves[i] is not None and self._differs(i, free)]
        return Variant(
            graph_module=fx.GraphModule(self.module, traced.graph),
            spec=self.call.spec,
            names=self.call.names,
            free=sorted(free),
            constants={i: leaves[i] for i in others if i not in free},
            present=present,
            known=traced.known,
            guards=traced.guards,
        )

    def _trace(
        self, free: Collection[int], training: bool = False, leaves: Sequence[Any] | None = None
    ) -> _Traced:
        self.module.training = training
        given = self.call.leaves if leaves is None else leaves
        tracer = Tracer(self.call, free, given, self.sizes, looks_inside=self.looks_inside)
        tracer.proxy_buffer_attributes = self.follows_buffers
        attributes = dict(vars(self.module))
        with tracing(tracer):
            graph = tracer.trace(self.module)
        if made := vars(self.module).keys() - attributes.keys():
            for name in made:
                delattr(self.module, name)
            raise ValueError("it makes constants")
        return _Traced(graph, tracer.known, tracer.guards)

    def _free(self, reference: _Traced, others: Sequence[int]) -> set[int]:
        if not others or self._is_right({*self.tensors, *others}, reference):
            return {*self.tensors, *others}
        free = set(self.tensors)
        for index in others:
            if self._is_right({*free, index}, reference):
                free.add(index)
        return free

    def _is_right(self, free: Collection[int], reference: _Traced) -> bool:
        """Whether with these leaves free the same is computed as with their values written in."""
        try:
            return _agree(reference, self._trace(free))
        except Exception:  # the code needs one of them
            return False

    def _differs(self, index: int, free: Collection[int]) -> bool:
        """Whether the code takes None in place of a leaf, and then does something else."""
        leaves = list(self.call.leaves)
        leaves[index] = None
        others = [i for i in free if i != index]
        try:
            return not _agree(self._trace(others, leaves=leaves), self._trace(free), {index: None})
        except Exception:  # None is not what it takes
            return False


def _agree(reference: _Traced, traced: _Traced, replaced: Mapping[int, Any] | None = None) -> bool:
    """Whether a graph is the reference once its known nodes have their values."""
    values = dict(traced.known)
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            index = int(str(node.target).rpartition("_")[2])
            if replaced is not None and index in replaced:
                values[node] = replaced[index]
    first = [node for node in reference.graph.nodes if node not in reference.known]
    second = [node for node in traced.graph.nodes if node not in values]
    first = [node for node in first if node.op != "placeholder"]
    second = [node for node in second if node.op != "placeholder"]
    placeholders = {n.target: n for n in reference.graph.nodes if n.op == "placeholder"}
    pairs = {
        node: placeholders[node.target]
        for node in traced.graph.nodes
        if node.op == "placeholder" and node not in values
    }
    pairs.update(zip(second, first, strict=False))

    def counterpart(node: fx.Node) -> Any:
        return values[node] if node in values else pairs[node]

    def resolved(node: fx.Node) -> Any:
        return reference.known.get(node, node)

    return len(first) == len(second) and all(
        _is_alike(a, b)
        and _equal(fx.map_arg(a.args, resolved), fx.map_arg(b.args, counterpart))
        and _equal(fx.map_arg(a.kwargs, resolved), fx.map_arg(b.kwargs, counterpart))
        for a, b in zip(first, second, strict=True)
    )


def _is_alike(first: fx.Node, second: fx.Node) -> bool:
    return first.op == second.op and first.target == second.target


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, (list, tuple)) and isinstance(second, (list, tuple)):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        return first.keys() == second.keys() and all(_equal(first[k], second[k]) for k in first)
    if isinstance(first, slice) and isinstance(second, slice):
        parts = ("start", "stop", "step")
        return all(_equal(getattr(first, part), getattr(second, part)) for part in parts)
    return same(first, second)


# ---------------------------------------------------------------------- two modes


def _merge_modes(traced: _Traced, training: _Traced) -> None:
    """Reads the module's mode wherever a constant differs between the two.

    Raises:
        ValueError: If more than constants differ.
    """
    nodes, twins = list(traced.graph.nodes), list(training.graph.nodes)
    if len(nodes) != len(twins) or not all(map(_is_alike, nodes, twins)):
        raise ValueError("it runs other operations in training mode")
    pairs = dict(zip(twins, nodes, strict=True))
    if {pairs[node] for node in training.guards} != traced.guards.keys():
        raise ValueError("it decides otherwise in training mode")
    for node, twin in zip(nodes, twins, strict=True):
        with traced.graph.inserting_before(node):
            args = fx.map_arg(twin.args, pairs.__getitem__)
            kwargs = fx.map_arg(twin.kwargs, pairs.__getitem__)
            node.args = _merged(traced.graph, node.args, args)
            node.kwargs = _merged(traced.graph, node.kwargs, kwargs)


def _merged(graph: fx.Graph, value: Any, training: Any) -> Any:
    if _equal(value, training):
        return value
    if isinstance(value, (list, tuple)) and isinstance(training, (list, tuple)):
        if len(value) != len(training):
            raise ValueError("it passes other arguments in training mode")
        return type(value)(_merged(graph, a, b) for a, b in zip(value, training, strict=True))
    if isinstance(value, Mapping) and isinstance(training, Mapping):
        if value.keys() != training.keys():
            raise ValueError("it passes other arguments in training mode")
        return {key: _merged(graph, value[key], training[key]) for key in value}
    if isinstance(value, (fx.Node, slice)) or isinstance(training, (fx.Node, slice)):
        raise ValueError("it passes other tensors in training mode")
    flag = graph.create_node("get_attr", "training")
    return graph.call_function(by_mode, (flag, training, value))
