"""The tracer of a module's forward: values of numbers, decisions by them, what is made of them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves

from amc_compress.learners.tracing.rewriting.call_arguments import CallArguments

UNKNOWN = object()
"""Stands for a value that no number decides."""

_PURE = frozenset(("_operator", "operator", "builtins", "math"))
_UNFLATTEN = ("unflatten", torch.unflatten)
# They take no tensor, so that ``torch.fx`` does not see them, and would need the numbers.
_FACTORIES = ("arange", "empty", "eye", "full", "linspace", "ones", "zeros")


class _Value(fx.Proxy):
    """A proxy into which code may write."""

    def __setitem__(self, index: Any, value: Any) -> None:
        target = operator.setitem
        self.tracer.create_proxy("call_function", target, (self, index, value), {})


class _Number(_Value):
    """A proxy whose value is known; where Python needs the number itself, it is pinned."""

    def _pinned(self) -> Any:
        tracer = cast(Tracer, self.tracer)
        tracer.guards[self.node] = tracer.known[self.node]
        return tracer.known[self.node]

    def __index__(self) -> int:
        return operator.index(self._pinned())

    def __int__(self) -> int:
        return int(self._pinned())

    def __float__(self) -> float:
        return float(self._pinned())


class Tracer(fx.Tracer):
    """Traces one call.

    Args:
        call: The call.
        free: Leaves that become placeholders.
        leaves: The values of the others.
        sizes: The first decisions by the sizes of arguments, if they are not those of the call.
        looks_inside: Whether functions that their library keeps as one operation are followed, and
            decisions by the sizes of arguments are made.
    """

    def __init__(
        self,
        call: CallArguments,
        free: Collection[int],
        leaves: Sequence[Any],
        sizes: Sequence[bool] = (),
        *,
        looks_inside: bool = False,
    ) -> None:
        super().__init__()
        self.sizes = list(sizes)
        self.looks_inside = looks_inside
        self.call = call
        self.free = free
        self.leaves = leaves
        self.known: dict[fx.Node, Any] = {}
        self.guards: dict[fx.Node, Any] = {}
        self.shapes: dict[fx.Node, Any] = {}  # what arguments alone decide, on no device

    def proxy(self, node: fx.Node) -> fx.Proxy:
        """Returns the proxy of a node."""
        return _Value(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Says that children are called, not followed."""
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
        self.shapes[proxy.node] = shape_of(self.leaves[index])
        return proxy if self.call.is_tensor(index) else self._number(proxy, self.leaves[index])

    def _number(self, proxy: fx.Proxy, value: Any) -> _Number:
        self.known[proxy.node] = value
        return _Number(proxy.node, self)

    def create_proxy(
        self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any
    ) -> fx.Proxy:
        """Notes the value of what is computed from known values alone."""
        if kind in ("call_function", "call_method") and target in _UNFLATTEN:
            return _reshaped(*args, **kwargs)
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        if self.looks_inside:
            self.shapes[proxy.node] = shaped(proxy.node, self.shapes)
        inputs = proxy.node.all_input_nodes
        if inputs and all(node in self.known for node in inputs):
            value = evaluated(proxy.node, self.known)
            if value is not UNKNOWN:
                return self._number(proxy, value)
        return proxy

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Decides by the value of the call, and remembers the decision."""
        if obj.node not in self.known:
            if isinstance(value := self.shapes.get(obj.node), bool):
                if obj.node not in self.guards:
                    self.guards[obj.node] = self.sizes.pop(0) if self.sizes else value
                return cast(bool, self.guards[obj.node])
            return super().to_bool(obj)
        node = obj.node
        if not isinstance(self.known[node], bool):
            node = self.create_proxy("call_function", operator.truth, (obj,), {}).node
        self.guards[node] = self.known[node]
        return bool(self.known[node])


def _reshaped(
    input: fx.Proxy,
    dim: int,
    sizes: Any,
) -> fx.Proxy:
    """Splits an axis as a reshape does, whose sizes can be brought up to date after a cut."""
    shape: Any = input.shape
    inside = sizes if isinstance(sizes, fx.Proxy) else tuple(sizes)
    after = () if dim == -1 else shape[dim + 1 :]
    split: fx.Proxy = input.reshape(shape[:dim] + inside + after)
    return split


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


def evaluated(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns what a node computes from Python values, ``UNKNOWN`` if it is no such node."""
    if node.op not in ("call_function", "call_method"):
        return UNKNOWN
    try:
        args = fx.map_arg(node.args, values.__getitem__)
        kwargs = fx.map_arg(node.kwargs, values.__getitem__)
        if any(value is UNKNOWN for value in (*args, *kwargs.values())):
            return UNKNOWN
        if isinstance(node.target, str):
            value = getattr(args[0], node.target)(*args[1:], **kwargs)
        elif callable(node.target) and getattr(node.target, "__module__", None) in _PURE:
            value = node.target(*args, **kwargs)
        else:
            return UNKNOWN
    except Exception:  # what does not work on these values decides nothing
        return UNKNOWN
    return UNKNOWN if isinstance(value, Tensor) else value


def shape_of(value: Any) -> Any:
    """Returns a tensor of the same shape that holds nothing; other values as they are."""
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def shaped(node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """Returns what a node yields on tensors that hold nothing, ``UNKNOWN`` if numbers decide it.

    Of a module's children and parameters nothing is known: cut ones have other shapes.
    """
    if node.op not in ("call_function", "call_method") or node.target is operator.setitem:
        return UNKNOWN
    if any(values.get(x, UNKNOWN) is UNKNOWN for x in node.all_input_nodes):
        return UNKNOWN
    args = fx.map_arg(node.args, values.__getitem__)
    kwargs = fx.map_arg(node.kwargs, values.__getitem__)
    try:
        if isinstance(node.target, str):
            return getattr(args[0], node.target)(*args[1:], **kwargs)
        return node.target(*args, **kwargs)
    except Exception:  # what the numbers decide
        return UNKNOWN


def keeps_functions(graph: fx.Graph) -> bool:
    """Whether a graph calls functions that ``torch.fx.wrap`` keeps as one operation."""
    kept = [scope.get(name) for (_, name), scope in _wrapped().items()]
    return any(node.target in kept for node in graph.nodes if node.op == "call_function")


def _wrapped() -> dict[tuple[int, str], dict[str, Any]]:
    found: dict[tuple[int, str], dict[str, Any]] = fx._symbolic_trace._wrapped_fns_to_patch
    return found


@contextmanager
def tracing(tracer: Tracer) -> Iterator[None]:
    """Records tensors that are made of the sizes of others, as ``torch.arange(height)``.

    Of a tracer that looks inside, nothing that its library has wrapped is kept whole.
    """
    # PyTorch lists its functions once in a process: with those of here it would keep the tracer,
    # and the network that it traces, for good.
    torch.overrides.get_overridable_functions()
    originals = {name: getattr(torch, name) for name in _FACTORIES}
    wrapped = dict(_wrapped()) if tracer.looks_inside else {}
    for name, original in originals.items():
        setattr(torch, name, _recorded(tracer, original))
    for key in wrapped:
        del _wrapped()[key]
    try:
        yield
    finally:
        _wrapped().update(wrapped)
        for name, original in originals.items():
            setattr(torch, name, original)


def _recorded(tracer: Tracer, original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(leaf, fx.Proxy) for leaf in tree_leaves((args, kwargs))):
            return tracer.create_proxy("call_function", original, args, kwargs)
        return original(*args, **kwargs)

    return factory
