"""Traces the forward of one module with ``torch.fx``, and notes the labels of every node."""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import setitem
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

from amc_compress.learners.tracing.labels.label_state import LabelState
from amc_compress.learners.tracing.rewriting.call_arguments import CallArguments, signature_of
from amc_compress.learners.tracing.rewriting.symbolic_forward import (
    Variant,
    other_sizes,
    trace_forward,
)
from amc_env.validation.sentences import first_line

# A module that is called in more ways than these is not rewritten.
_MAX_VARIANTS = 16

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
        numbers: Nodes that depend on no tensor -> value.
    """

    labels: dict[fx.Node, Any] = field(default_factory=dict)
    values: dict[fx.Node, Any] = field(default_factory=dict)
    movements: set[fx.Node] = field(default_factory=set)
    numbers: dict[fx.Node, Any] = field(default_factory=dict)


@dataclass
class TraceMemory:
    """Cache of traced modules, independent of labels.

    Args:
        variants: Its graphs, one per kind of call.
        failure: Why it cannot be traced.
        has_misled: Whether that was found after a graph of it had been executed.
        explored: Variants of which those for other sizes are among ``variants``, too.
    """

    variants: list[Variant] = field(default_factory=list)
    failure: str | None = None
    has_misled: bool = False
    explored: set[Variant] = field(default_factory=set)


class TracedForward:
    """Takes the place of a module's forward while labels are propagated.

    Args:
        module: The module whose forward is traced, once per kind of call.
        mode: The running label mode.
        memory: What earlier runs have traced; written too.
    """

    def __init__(self, module: nn.Module, mode: LabelState, memory: TraceMemory) -> None:
        self.module = module
        self.mode = mode
        self.memory = memory
        self.original = module.forward
        self.calls: list[tuple[Variant, Record]] = []
        self.has_executed = False
        self.seen: list[Tensor] = []  # labels of a module that is not understood
        self.sized: dict[Variant, CallArguments] = {}  # variants for some sizes -> a call of them

    @property
    def failure(self) -> str | None:
        """Why the forward cannot be rewritten, None if it can."""
        return self.memory.failure

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the traced graph, or the original forward where tracing fails."""
        if self.failure is None:
            try:
                return self._run(args, kwargs)
            except Exception as error:  # whatever fx cannot follow is simply not rewritten
                self.memory.failure = first_line(error)
                self.memory.has_misled = self.has_executed
        start = len(self.mode.table)
        out = self.original(*args, **kwargs)
        self.seen.append(torch.arange(start, len(self.mode.table)))
        for leaf in tree_leaves((args, kwargs, out)):
            labels = self.mode.label(leaf) if isinstance(leaf, Tensor) else None
            if labels is not None:
                self.seen.append(labels.reshape(-1))
        return out

    def _run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = CallArguments.of(signature_of(type(self.module)), args, kwargs)
        variant = next((known for known in self.memory.variants if known.takes(call)), None)
        if variant is None:
            if len(self.memory.variants) == _MAX_VARIANTS:
                raise ValueError(f"it is called in more than {_MAX_VARIANTS} ways")
            if (store := call.first_store()) is not None:
                raise ValueError(f"it is passed a {store}, which it may write into")
            with _disable_current_modes():  # what tracing executes is no part of the run
                variant = trace_forward(self.module, call)
            self.memory.variants.append(variant)
        self.has_executed = True
        if variant.decides_by_sizes:
            self.sized.setdefault(variant, call)
        return self._recorded(variant, call)

    def _recorded(self, variant: Variant, call: CallArguments) -> Any:
        """Runs a graph, and remembers what its nodes produced."""
        # Those that it decides by are what it holds for, whatever the call would decide.
        numbers = variant.numbers(call.leaves) | variant.guards
        recorder = _Recorder(variant, self.mode, numbers)
        out = recorder.run(*(call.leaves[index] for index in variant.free))
        recorder.finish()
        self.calls.append((variant, recorder.record))
        return out

    def explore(self, name: str) -> None:
        """Follows what the module would do with arguments of other sizes, on those that it got.

        Args:
            name: Of the module.
        """
        if not self.sized:
            return
        known, touched = len(self.mode.calls), set(self.mode.touched)
        self.mode.modules.append(name)
        with torch.no_grad(), self.mode:
            for variant, call in self.sized.items():
                for other in self._others(variant, call):
                    try:
                        self._recorded(other, call)
                    except Exception:  # it does not run on these, and on others as it may
                        self.memory.variants.remove(other)
        self.mode.modules.pop()
        del self.mode.calls[known:]  # that is no work of the example
        self.mode.touched = touched

    def _others(self, variant: Variant, call: CallArguments) -> list[Variant]:
        """Returns the variants of a module for arguments of other sizes."""
        if variant not in self.memory.explored:
            self.memory.explored.add(variant)
            with _disable_current_modes():
                self.memory.variants += other_sizes(self.module, call, variant, _MAX_VARIANTS // 2)
        return [x for x in self.memory.variants if x.decides_by_sizes and x not in self.sized]


class _Recorder(fx.Interpreter):
    """Executes a graph for real and notes every node's labels."""

    def __init__(self, variant: Variant, mode: LabelState, numbers: dict[fx.Node, Any]) -> None:
        super().__init__(variant.graph_module)
        self.mode = mode
        self.record = Record(numbers=numbers)
        self._attributes: dict[fx.Node, Any] = {}

    def finish(self) -> None:
        """Notes the labels of parameters, which only have some if an operation has given them any.

        The weight of a layer has none as a whole: its axes have.
        """
        for node, value in self._attributes.items():
            self.record.labels[node] = tree_map(self._labels, value)

    def fetch_attr(self, target: str) -> Any:
        return self.module.training if target == "training" else super().fetch_attr(target)

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        """Returns what the forward returns, in containers that its caller may change."""
        return _mutable(args[0])

    def run_node(self, n: fx.Node) -> Any:
        """Executes a node under labels.

        Raises:
            ValueError: If it writes into data with channels, of which a cut one has others.
        """
        if n.target is setitem and self.mode.label(self.env[n.args[0]]) is not None:  # type: ignore[index]
            raise ValueError("it writes into data with channels")
        seen: set[str] = set()
        self.mode.observed.append(seen)
        try:
            value = super().run_node(n)
        finally:
            self.mode.observed.pop()
        if n.op == "get_attr" and isinstance(value, Tensor):
            self._attributes[n] = value
        elif any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            self.record.labels[n] = tree_map(self._labels, value)
            if _is_movement(n, seen):
                self.record.movements.add(n)
        else:
            self.record.values[n] = value
        return value

    def _labels(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        is_own = id(leaf) in self.mode.parameters  # a parameter or buffer
        is_bare = is_own and id(leaf) not in self.mode.parameter_labels
        labels = None if is_bare else self.mode.label(leaf)
        return torch.zeros((), dtype=torch.int64).expand(leaf.shape) if labels is None else labels


def _mutable(value: Any) -> Any:
    """Replaces the containers of fx by those that they stand for."""
    if isinstance(value, dict):
        return {key: _mutable(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_mutable(entry) for entry in value]
    if isinstance(value, tuple):
        entries = [_mutable(entry) for entry in value]
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    return value


def _is_movement(node: fx.Node, seen: set[str]) -> bool:
    """Whether a node only moved data; some do nothing on this input, and dropout is not one."""
    if node.op not in ("call_function", "call_method") or node.target is torch._assert:
        return False
    return seen == {"movement"} or (not seen and function_name(node) in EQUIVARIANT | {"getitem"})


def function_name(node: fx.Node) -> str:
    """Returns the bare name of the function or method that a node calls."""
    return node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
