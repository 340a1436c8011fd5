"""Traces the forward of one module with ``torch.fx``, and notes the labels of every node."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from learners.label_state import LabelState

# Movements that are right for every cut of their input, whatever their arguments.
EQUIVARIANT = frozenset(
    (
        *("permute", "transpose", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "flip"),
        *("cat", "concat", "concatenate", "stack", "unbind", "flatten", "unsqueeze", "clone"),
        *("contiguous", "to", "float", "detach", "view_as", "reshape_as", "expand_as"),
    )
)


@dataclass
class Record:
    """One execution of a traced module: what every node produced.

    Args:
        labels: Node -> labels (tensors in the structure of the node's value).
        values: Node -> value, for nodes that hold no tensors.
        movements: Nodes that only move data.
    """

    labels: dict[fx.Node, Any] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    movements: set[fx.Node] = field(default_factory=set)


class TracedForward:
    """Takes the place of a module's forward while labels are propagated.

    Args:
        module: The module whose forward is traced at its first call.
        mode: The running label mode.
    """

    def __init__(self, module: nn.Module, mode: LabelState) -> None:
        self.module = module
        self.mode = mode
        self.original = module.forward
        self.graph_module: fx.GraphModule | None = None
        self.records: list[Record] = []
        self.failed = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the traced graph, or the original forward where tracing fails."""
        if self.failed:
            return self.original(*args, **kwargs)
        try:
            bound = inspect.signature(self.original).bind(*args, **kwargs)
            bound.apply_defaults()
            if self.graph_module is None:
                self.graph_module = trace_forward(self.module, bound.arguments)
            recorder = _Recorder(self.graph_module, self.mode)
            out = recorder.run(*bound.arguments.values())
        except Exception:  # whatever fx cannot follow is simply not rewritten
            self.failed = True
            return self.original(*args, **kwargs)
        self.records.append(recorder.record)
        return out


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return True


def _graph_of(module: nn.Module, concrete: dict[str, Any]) -> fx.Graph:
    return _Tracer().trace(module, concrete)


def trace_forward(module: nn.Module, arguments: Mapping[str, Any]) -> fx.GraphModule:
    """Returns the graph of a module's own forward; its children stay modules.

    ``self.training`` would be frozen into the graph: it is traced in both modes and read from the
    module wherever the two differ.
    """
    if any(
        parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
        for parameter in inspect.signature(type(module).forward).parameters.values()
    ):
        raise ValueError("a forward with a variable number of arguments")
    concrete = {
        name: value
        for name, value in arguments.items()
        if not any(isinstance(leaf, Tensor) for leaf in tree_leaves(value))
    }
    before = set(vars(module)) | set(module._buffers)
    mode = module.training
    try:
        module.training = True
        training = _graph_of(module, concrete)
        module.training = False
        graph = _graph_of(module, concrete)
    finally:
        module.training = mode
    if (set(vars(module)) | set(module._buffers)) - before:
        raise ValueError("a forward that makes constants")
    if len(training.nodes) == len(graph.nodes):
        for node, twin in zip(list(graph.nodes), training.nodes, strict=True):
            _read_training(graph, node, twin)
    return fx.GraphModule(module, graph)


def _read_training(graph: fx.Graph, node: fx.Node, twin: fx.Node) -> None:
    def swap(value: Any, other: Any) -> Any:
        if value is False and other is True:
            with graph.inserting_before(node):
                return graph.create_node("get_attr", "training")
        return value

    if len(node.args) == len(twin.args) and node.kwargs.keys() == twin.kwargs.keys():
        node.args = tuple(map(swap, node.args, twin.args))
        node.kwargs = {key: swap(node.kwargs[key], twin.kwargs[key]) for key in node.kwargs}


class _Recorder(fx.Interpreter):
    """Executes a graph for real and notes every node's labels."""

    def __init__(self, module: fx.GraphModule, mode: LabelState) -> None:
        super().__init__(module)
        self.mode = mode
        self.record = Record()

    def fetch_attr(self, target: str) -> Any:
        return self.module.training if target == "training" else super().fetch_attr(target)

    def run_node(self, n: fx.Node) -> Any:
        seen: set[str] = set()
        self.mode.observed.append(seen)
        try:
            value = super().run_node(n)
        finally:
            self.mode.observed.pop()
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            self.record.labels[n] = tree_map(self._labels, value)
            if _is_movement(n, seen):
                self.record.movements.add(n)
        else:
            self.record.values[n] = value
        return value

    def _labels(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        labels = self.mode.label(leaf)
        return torch.zeros((), dtype=torch.int64).expand(leaf.shape) if labels is None else labels


def _is_movement(node: fx.Node, seen: set[str]) -> bool:
    """Whether a node only moved data; some do nothing on this input, and dropout is not one."""
    if node.op not in ("call_function", "call_method") or node.target is torch._assert:
        return False
    return seen == {"movement"} or (not seen and function_name(node) in EQUIVARIANT | {"getitem"})


def function_name(node: fx.Node) -> str:
    """Returns the bare name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
