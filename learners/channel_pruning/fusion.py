"""Batch norm, residual add and activation folded into the convolutions, for inference only.

On a processor the fused convolutions are the ones that ``torch.compile`` emits
(``torch.ops.mkldnn._convolution_pointwise``), called without a compiler: a candidate is ready in
milliseconds. They are private to PyTorch, so they are tried once on a tiny tensor; where they are
missing or wrong the same folded network runs on public operators.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, fx, nn

_ADDS: set[Any] = {operator.add, operator.iadd, torch.add, "add", "add_"}
_RELUS: set[Any] = {torch.relu, F.relu, torch.relu_, F.relu_, "relu", "relu_"}
_ACTIVATIONS: dict[str, tuple[str, list[float]]] = {
    "none": ("none", []),
    "relu": ("relu", []),
    "relu6": ("hardtanh", [0.0, 6.0]),
}


@lru_cache
def onednn_available(dtype: torch.dtype) -> bool:
    """Whether oneDNN's fused convolutions exist here and agree with the public operator."""
    generator = torch.Generator().manual_seed(0)
    try:
        module = FusedConv(nn.Conv2d(3, 8, 3, device="meta"), None, "relu", dtype)
        weight = torch.randn(8, 3, 3, 3, generator=generator)
        bias = torch.randn(8, generator=generator)
        images = torch.randn(2, 3, 5, 5, generator=generator)
        other = torch.randn(2, 8, 3, 3, generator=generator)
        module.load(weight, bias, native=True)
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            found = module(images).float()
            added = module(images, other).float()
            module.overwrites = True
            written = module(images, other.clone()).float()
            expected = F.conv2d(images, weight, bias)
    except (AttributeError, RuntimeError, NotImplementedError, TypeError):
        return False
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    return bool(
        torch.allclose(found, expected.relu(), atol=tolerance)
        and torch.allclose(added, (expected + other).relu(), atol=tolerance)
        and torch.allclose(written, added, atol=tolerance)
    )


class FusedConv(nn.Module):
    """``activation(scale * conv(x) + shift [+ other])`` with the scale in the weights.

    Args:
        conv: The convolution; its weights are folded, not changed.
        norm: The batch norm behind it, in ``eval`` mode.
        activation: ``"none"``, ``"relu"`` or ``"relu6"``.
        dtype: Type of weights and output.
    """

    def __init__(
        self, conv: nn.Conv2d, norm: nn.BatchNorm2d | None, activation: str, dtype: torch.dtype
    ) -> None:
        super().__init__()
        assert not isinstance(conv.padding, str)
        self.geometry: tuple[list[int], list[int], list[int], int] = (
            list(conv.padding),
            list(conv.stride),
            list(conv.dilation),
            conv.groups,
        )
        self.dtype = dtype
        self.activation = activation
        self.native = False
        self.overwrites = False
        self.weight: Tensor
        self.bias: Tensor
        if conv.weight.is_meta:
            return
        weight, bias = fold_batch_norm(conv, norm)
        self.load(weight, bias, native=weight.device.type == "cpu" and onednn_available(dtype))

    def load(self, weight: Tensor, bias: Tensor, *, native: bool) -> None:
        """Takes over folded float32 weights."""
        self.native = native
        weight = weight.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if native:
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self.geometry)
        # Plain attributes: oneDNN's blocked layout is opaque to parameter machinery.
        self.__dict__["weight"] = weight
        self.__dict__["bias"] = bias.to(self.dtype)

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """Convolves ``x``; ``other`` is added before the activation."""
        x = x.to(self.dtype).contiguous(memory_format=torch.channels_last)
        if not self.native:
            return self._public(x, other)
        arguments = (self.weight, self.bias, *self.geometry)
        name, scalars = _ACTIVATIONS[self.activation]
        op = torch.ops.mkldnn._convolution_pointwise
        if other is None:
            result = op(x, *arguments, name, scalars, "")
        elif self.activation != "relu6" and other.shape == self._output_shape(x):
            other = other.to(self.dtype).contiguous(memory_format=torch.channels_last)
            sum_then: tuple[Any, ...] = (
                "add",
                1.0,
                "relu" if self.activation == "relu" else None,
                [],
                "",
            )
            if self.overwrites:
                in_place = torch.ops.mkldnn._convolution_pointwise_.binary
                result = in_place(other, x, *arguments, *sum_then)
            else:
                result = op.binary(x, other, *arguments, *sum_then)
        else:
            result = self._activate(op(x, *arguments, "none", [], "") + other)
        assert isinstance(result, Tensor)
        return result

    def _public(self, x: Tensor, other: Tensor | None) -> Tensor:
        padding, stride, dilation, groups = self.geometry
        y = F.conv2d(x, self.weight, self.bias, stride, padding, dilation, groups)
        return self._activate(y if other is None else y + other)

    def _activate(self, y: Tensor) -> Tensor:
        if self.activation == "relu":
            return y.relu()
        return F.relu6(y) if self.activation == "relu6" else y

    def _output_shape(self, x: Tensor) -> tuple[int, ...]:
        padding, stride, dilation, _ = self.geometry
        kernel = self.weight.shape[2:]
        size = [
            (x.shape[2 + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
            for i in range(2)
        ]
        return (x.shape[0], self.bias.shape[0], *size)


def fold_batch_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d | None) -> tuple[Tensor, Tensor]:
    """Returns ``(weight, bias)`` of the convolution that does both in one."""
    weight = conv.weight.detach().float()
    bias = weight.new_zeros(weight.shape[0]) if conv.bias is None else conv.bias.detach().float()
    if norm is None:
        return weight, bias
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.float() + norm.eps)
    shift = torch.zeros_like(scale)
    if norm.affine:
        scale = scale * norm.weight.detach().float()
        shift = norm.bias.detach().float()
    bias = (bias - norm.running_mean.float()) * scale + shift
    return weight * scale.view(-1, 1, 1, 1), bias


def fuse(network: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    """Returns an inference function equal to ``network`` in ``eval`` mode, up to rounding.

    Modules that are not folded are shared with ``network``, which itself is not changed; call the
    result under ``torch.autocast`` when ``dtype`` is not float32.

    Raises:
        Exception: Whatever ``torch.fx`` raises on a network that it cannot trace.
    """
    graph = fx.Tracer().trace(network)
    modules = dict(network.named_modules())
    attributes: dict[str, Any] = {}
    for node in list(graph.nodes):
        conv = _module(node, modules)
        if type(conv) is not nn.Conv2d or isinstance(conv.padding, str):
            continue
        if conv.padding_mode == "zeros":
            _fuse_one(graph, node, conv, modules, attributes, dtype)
    _allow_overwriting(graph, attributes)
    for name in {n.target for n in graph.nodes if n.op in ("call_module", "get_attr")}:
        if name not in attributes:
            attributes[name] = operator.attrgetter(name)(network)
    return fx.GraphModule(attributes, graph)


def following_norms(network: nn.Module) -> dict[str, str]:
    """Returns convolution -> batch norm for all that read nothing but each other.

    Networks that cannot be traced have none.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:
        # As in ``fusion_works``: whatever a forward does that tracing does not take.
        return {}
    modules = dict(network.named_modules())
    targets = [str(n.target) for n in graph.nodes if n.op == "call_module"]
    found = {}
    for node in graph.nodes:
        follower = _only_user(node)
        norm = _module(follower, modules)
        if _module(node, modules) is None or not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        assert follower is not None
        first, second = str(node.target), str(follower.target)
        if norm.running_mean is not None and targets.count(first) == targets.count(second) == 1:
            found[first] = second
    return found


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
    attributes[target] = FusedConv(conv, norm, activation, dtype)
    # Inserted where the last of them stood, so that the other summand exists already.
    with graph.inserting_before(chain[-1]):
        call = graph.call_module(target, tuple(a for a in (node.args[0], other) if a is not None))
    chain[-1].replace_all_uses_with(call)
    for absorbed in reversed(chain):
        graph.erase_node(absorbed)


def _allow_overwriting(graph: fx.Graph, attributes: dict[str, Any]) -> None:
    """Lets sums be written into their other summand where nobody needs it afterwards.

    That saves a fifth of ResNet-20's time. The summand must be a fresh tensor (made by a fused
    convolution or a padding), and everybody else who reads it must come earlier and make a fresh
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


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 else None


def _module(node: fx.Node | None, modules: dict[str, nn.Module]) -> nn.Module | None:
    if node is None or node.op != "call_module" or len(node.args) != 1 or node.kwargs:
        return None
    return modules.get(str(node.target))


def _added(node: fx.Node, first: fx.Node) -> fx.Node | None:
    """Returns the other summand if ``node`` is a sum with ``first`` that can be fused."""
    if node.op not in ("call_function", "call_method") or node.target not in _ADDS:
        return None
    if len(node.args) != 2 or node.kwargs:
        return None
    left, right = node.args
    if left is first:
        return right if isinstance(right, fx.Node) and right is not first else None
    # ``other += conv(x)`` changes ``other``, which somebody may read later.
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
