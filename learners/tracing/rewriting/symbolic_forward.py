"""Traces the forward of one module with ``torch.fx``, keeping its arguments free where it can.

A number, flag or None that is passed to a module is no constant of it: the next image has another
height. All of them enter the graph as arguments, together with the values of the call that was
traced. Where the code decides by one of them (``if groups > 1``), the decision becomes a condition
under which the graph holds. ``is None`` cannot be seen by any proxy: whether an argument may be
free is found by tracing both with it and with its value written in, which must yield the same
graph. What may not be free is a constant, and a condition too.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec

from amc_compress.learners.tracing.rewriting.call_arguments import CallArguments

_PURE = frozenset(("_operator", "operator", "builtins", "math"))
_SYMBOLIC = (torch.SymInt, torch.SymFloat, torch.SymBool)
_UNKNOWN = object()


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
        guards: Nodes among them -> the value that the graph holds for.
    """

    graph_module: fx.GraphModule
    spec: TreeSpec
    names: list[str]
    free: list[int]
    constants: dict[int, Any]
    present: list[int]
    known: dict[fx.Node, Any]
    guards: dict[fx.Node, Any]

    def numbers(self, leaves: Sequence[Any]) -> dict[fx.Node, Any]:
        """Returns the value of every number that a call's arguments alone decide."""
        values: dict[fx.Node, Any] = {}
        arguments = iter(self.free)
        for node in self.graph_module.graph.nodes:
            if node.op == "placeholder":
                leaf = leaves[next(arguments)]
                if node in self.known:
                    values[node] = leaf
            elif node in self.known:
                values[node] = _evaluated(node, values)
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


class _Number(fx.Proxy):
    """A proxy whose value is known; where Python needs the number itself, it is pinned."""

    def _pinned(self) -> Any:
        tracer = cast(_Tracer, self.tracer)
        tracer.guards[self.node] = tracer.known[self.node]
        return tracer.known[self.node]

    def __index__(self) -> int:
        return operator.index(self._pinned())

    def __int__(self) -> int:
        return int(self._pinned())

    def __float__(self) -> float:
        return float(self._pinned())


class _Tracer(fx.Tracer):
    """Traces one call.

    Args:
        call: The call.
        free: Leaves that become placeholders.
        leaves: The values of the others.
    """

    def __init__(self, call: CallArguments, free: Collection[int], leaves: Sequence[Any]) -> None:
        super().__init__()
        self.call = call
        self.free = free
        self.leaves = leaves
        self.known: dict[fx.Node, Any] = {}
        self.guards: dict[fx.Node, Any] = {}

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True

    def create_args_for_root(
        self, root_fn: Callable[..., Any], is_module: bool, concrete_args: Any = None
    ) -> tuple[Any, list[Any]]:
        """Makes a placeholder per free leaf; the forward is called as it was."""
        proxies = [
            self._placeholder(index) if index in self.free else leaf
            for index, leaf in enumerate(self.leaves)
        ]

        def forward(root: nn.Module) -> Any:
            out = self.call.call(root_fn, root, proxies)
            _check_containers(out)
            return out

        return forward, [self.root]

    def _placeholder(self, index: int) -> fx.Proxy:
        name = "".join(c if c.isalnum() else "_" for c in self.call.names[index])
        proxy = super().create_proxy("placeholder", f"{name}_{index}", (), {})
        return proxy if self.call.is_tensor(index) else self._number(proxy, self.leaves[index])

    def _number(self, proxy: fx.Proxy, value: Any) -> _Number:
        self.known[proxy.node] = value
        return _Number(proxy.node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> fx.Proxy:
        """Notes the value of what is computed from known values alone."""
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        inputs = proxy.node.all_input_nodes
        if inputs and all(node in self.known for node in inputs):
            value = _evaluated(proxy.node, self.known)
            if value is not _UNKNOWN:
                return self._number(proxy, value)
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decides by the value of the call, and remembers the decision."""
        if obj.node not in self.known:
            return super().to_bool(obj)
        node = obj.node
        if not isinstance(self.known[node], bool):
            node = self.create_proxy("call_function", operator.truth, (obj,), {}).node
        self.guards[node] = self.known[node]
        return bool(self.known[node])


def _check_containers(value: Any) -> None:
    """Checks that a graph can return a value as it is: fx makes plain ones of its containers.

    Raises:
        ValueError: If it holds a mapping or sequence of a class of its own.
    """
    if not isinstance(value, (Mapping, list, tuple)):
        return
    if type(value) not in (dict, list, tuple) and not hasattr(value, "_fields"):
        raise ValueError(f"it returns a {type(value).__name__}")
    for entry in value.values() if isinstance(value, Mapping) else value:
        _check_containers(entry)


def _evaluated(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns what a node computes from Python values, ``_UNKNOWN`` if it is no such node."""
    if node.op not in ("call_function", "call_method"):
        return _UNKNOWN
    try:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        if any(value is _UNKNOWN for value in (*args, *kwargs.values())):
            return _UNKNOWN
        if isinstance(node.target, str):
            value = getattr(args[0], node.target)(*args[1:], **kwargs)
        elif callable(node.target) and getattr(node.target, "__module__", None) in _PURE:
            value = node.target(*args, **kwargs)
        else:
            return _UNKNOWN
    except Exception:  # what does not work on these values decides nothing
        return _UNKNOWN
    return _UNKNOWN if isinstance(value, Tensor) else value


# ---------------------------------------------------------------------- one module


@dataclass
class _Traced:
    graph: fx.Graph
    known: dict[fx.Node, Any]
    guards: dict[fx.Node, Any]


def trace_forward(module: nn.Module, call: CallArguments) -> Variant:
    """Returns the graph of a module's own forward for the arguments of one call.

    Raises:
        ValueError: If it does something else in training mode, or changes the module.
        Exception: Whatever fx raises on a forward that it cannot follow.
    """
    before, buffers, training = dict(vars(module)), dict(module._buffers), module.training
    try:
        variant = _Chooser(module, call).variant()
        changed = any(vars(module).get(key, _UNKNOWN) is not value
                      for key, value in before.items() if key != "training")  # fmt: skip
        if changed or len(vars(module)) != len(before) or len(module._buffers) != len(buffers):
            raise ValueError("it changes its module or makes constants")
    finally:
        vars(module).clear()
        vars(module).update(before)
        module.training = training
        module._buffers.clear()
        module._buffers.update(buffers)
    return variant


class _Chooser:
    """Finds which leaves of a call may be free."""

    def __init__(self, module: nn.Module, call: CallArguments) -> None:
        self.module = module
        self.call = call
        self.tensors = {i for i in range(len(call.leaves)) if call.is_tensor(i)}
        self.follows_buffers = False

    def variant(self) -> Variant:
        others = [i for i in range(len(self.call.leaves)) if i not in self.tensors]
        try:
            reference = self._trace(self.tensors)
        except Exception:  # a buffer is cut to a size that only the graph knows
            self.follows_buffers = True
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
        tracer = _Tracer(self.call, free, self.call.leaves if leaves is None else leaves)
        tracer.proxy_buffer_attributes = self.follows_buffers
        return _Traced(tracer.trace(self.module), tracer.known, tracer.guards)

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
