"""Batch norm, residual add and activation folded into the convolutions of a whole network.

The network is traced with ``torch.fx`` and its graph rewritten; a candidate is ready in
milliseconds.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

from amc_compress.learners.candidates.inference.fused_conv import FusedConv
from amc_compress.learners.layers.following_norms import ImageTracer, _module, _only_user

_ADDS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_RELUS: set[Any] = {torch.relu, F.relu, torch.relu_, F.relu_, "relu", "relu_"}


def fuse(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Returns an inference function equal to ``network`` in ``eval`` mode, up to rounding.

    Modules that are not folded are shared with ``network``, which itself is not changed; call the
    result under ``torch.autocast`` when ``dtype`` is not float32.

    Raises:
        Exception: Whatever ``torch.fx`` raises on a network that it cannot trace.
    """
    graph = ImageTracer().trace(network)
    modules = dict(network.named_modules())
    attributes: dict[str, Any] = {}
    for node in list(graph.nodes):
        conv = _module(node, modules)
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
            continue
        if conv.padding_mode == "zeros":
            _fuse_one(graph, node, conv, modules, attributes, dtype)
    _allow_overwriting(graph, attributes)
    _activate_in_place(graph, modules)
    for name in {n.target for n in graph.nodes if n.op in ("call_module", "get_attr")}:
        if name not in attributes:
            attributes[name] = operator.attrgetter(name)(network)
    return fx.GraphModule(attributes, graph)


def _fuse_one(
    graph: fx.Graph,
    node: fx.Node,
    conv: nn.Conv2d,
    modules: dict[str, nn.Module],
    attributes: dict[str, Any],
    dtype: torch.dtype,
) -> None:
    """Replaces a convolution and what follows it by one call."""
    chain: list[fx.Node] = [node]
    norm, other, activation = None, None, "none"
    follower = _only_user(node)
    module = _module(follower, modules)
    if follower is not None and type(module) is nn.BatchNorm2d and module.running_mean is not None:
        norm = module
        chain.append(follower)
        follower = _only_user(follower)
    if follower is not None and (other := _added(follower, chain[-1])) is not None:
        chain.append(follower)
        follower = _only_user(follower)
    if follower is not None and (name := _activation(follower, modules)):
        activation = name
        chain.append(follower)
    target = f"fused_{len(attributes)}"
    attributes[target] = FusedConv.of(conv, norm, activation, dtype)
    # Inserted where the last of them stood, so that the other summand exists already.
    with graph.inserting_before(chain[-1]):
        call = graph.call_module(target, tuple(a for a in (node.args[0], other) if a is not None))
    chain[-1].replace_all_uses_with(call)
    for absorbed in reversed(chain):
        graph.erase_node(absorbed)


def _allow_overwriting(graph: fx.Graph, attributes: dict[str, Any]) -> None:
    """Lets sums be written into their other summand where it is not needed afterwards.

    That saves a fifth of ResNet-20's time. The summand must be a fresh tensor (made by a fused
    convolution or a padding), and every other reader must come earlier and make a fresh
    tensor too, so that no view of it lives on.
    """

    def fresh(node: fx.Node) -> bool:
        return node.target is F.pad or isinstance(attributes.get(str(node.target)), FusedConv)

    place = {node: index for index, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        module = attributes.get(str(node.target))
        if not isinstance(module, FusedConv) or len(node.args) < 2:
            continue
        other = node.args[1]
        readers = [user for user in other.users if user is not node]
        module.overwrites = (
            other is not node.args[0]
            and fresh(other)
            and all(fresh(user) and place[user] < place[node] for user in readers)
        )


def _activate_in_place(graph: fx.Graph, modules: dict[str, nn.Module]) -> None:
    """Lets a ReLU that alone reads a batch norm write over it, which nothing else holds.

    Where norms come before convolutions, as in DenseNet, that saves a pass over all numbers.
    """
    for node in graph.nodes:
        if _activation(node, modules) != "relu" or not node.args:
            continue
        read = node.args[0]
        if not isinstance(read, fx.Node) or list(read.users) != [node]:
            continue
        if type(_module(read, modules)) is nn.BatchNorm2d:
            node.op, node.target, node.args, node.kwargs = "call_function", torch.relu_, (read,), {}


def _added(node: fx.Node, first: fx.Node) -> fx.Node | None:
    """Returns the other summand if ``node`` is a sum with ``first`` that can be fused."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if left is first:
        return right if isinstance(right, fx.Node) and right is not first else None
    # ``other += conv(x)`` changes ``other``, which may be read later.
    in_place = node.target in (operator.iadd, "add_")
    return left if isinstance(left, fx.Node) and not in_place else None


def _activation(node: fx.Node, modules: dict[str, nn.Module]) -> str | None:
    """Returns the name of an activation that can be fused, or ``None``."""
    module = _module(node, modules)
    if type(module) is nn.ReLU:
        return "relu"
    if type(module) is nn.ReLU6:
        return "relu6"
    if node.op == "call_module":
        return None
    if node.target in _RELUS:
        return "relu"
    return "relu6" if node.target is F.relu6 else None
