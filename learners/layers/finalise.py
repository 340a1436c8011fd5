"""Compressed layers made permanent: plain ones that hold their weights as they are used."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn

from amc_compress.learners.layers.following_norms import ImageTracer
from amc_compress.learners.layers.masked import Masked, SparseLayer, twin_of
from amc_compress.learners.layers.quantized import (
    INPUT,
    QuantizedLayer,
    quantized_layers,
    with_input,
)
from amc_compress.learners.layers.shared_weights import sharing_weights
from amc_compress.learners.layers.structure import replace_module


@torch.no_grad()
def finalise(network: nn.Module, *, quantized: bool = False, shares: bool = False) -> nn.Module:
    """Returns a copy with plain layers that have zeros where the masks are false.

    What was kept behind a mask is gone. The outputs in ``eval`` mode are exactly the same; what
    reads plain layers (exporters, fusion, other tools) reads the result.

    Args:
        network: With or without masked layers; it is not changed.
        quantized: Whether quantized layers become plain ones too, which hold the numbers that
            their weights stand for, with ``nn.Sequential(quantizer, layer)`` for one with a
            quantized input, and the network in ``eval`` mode. Otherwise they stay as they are.
        shares: Whether weights that stay what they are are shared with the network: for a copy
            that is evaluated and let go.
    """
    copied = sharing_weights(network) if shares else copy.deepcopy(network)
    kinds: tuple[type[nn.Module], ...] = (SparseLayer,)
    if quantized:
        copied, kinds = copied.eval(), (Masked,)
    # Under all its names, where one layer is used in several places.
    modules = list(copied.named_modules(remove_duplicate=False))
    layers = {name: m for name, m in modules if isinstance(m, Masked) and isinstance(m, kinds)}
    plain = {layer: _plain(layer, shares) for layer in layers.values()}
    for name, layer in layers.items():
        if name == "":
            return plain[layer]
        replace_module(copied, name, plain[layer])
    return copied


def plain_weights(network: nn.Module) -> nn.Module:
    """Returns a copy with plain layers that hold their weights as used; inputs stay float."""
    network = copy.deepcopy(network).cpu()
    for layer in quantized_layers(network).values():
        layer.input_quantizer = None
    return finalise(network, quantized=True)


class _QuantizedInput(nn.Sequential):
    """A quantizer of an input, and the layer that takes it with whatever else there is."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the layer makes of the quantized input."""
        quantizer, layer = self
        args, kwargs = with_input(args, kwargs, quantizer)
        return layer(*args, **kwargs)


def _plain(layer: Masked, shares: bool) -> nn.Module:
    plain = twin_of(layer.plain, layer)
    used: dict[str, Callable[[], Tensor]] = {"weight": layer.masked_weight}
    quantizer = None
    if isinstance(layer, QuantizedLayer):
        names, quantizer = layer.quantized_parameters, layer.input_quantizer
        used = {name: partial(layer.quantized_weight, name) for name in names}
        for unused in (*(f"{name}_quantizer" for name in names), INPUT):
            plain.__dict__.pop(unused, None)  # there if they are None
            plain._modules.pop(unused, None)
        del plain.__dict__["quantized_parameters"]
    for name, weight in used.items():
        before, numbers = layer.get_parameter(name), weight().detach()
        if shares and torch.equal(numbers, before):
            continue  # what was rounded before, and what is not rounded
        own = nn.Parameter(numbers if shares else numbers.clone(), before.requires_grad)
        setattr(plain, name, own)
    return plain if quantizer is None else _QuantizedInput(quantizer, plain).eval()


def without_identities(network: nn.Module) -> nn.Module:
    """Returns the network as a graph in which no ``nn.Identity`` separates what can be fused.

    Modules are shared with ``network``, which is returned itself where it cannot be traced.
    """
    try:
        traced = fx.GraphModule(network, ImageTracer().trace(network))
    except Exception:
        # As in ``following_norms``: whatever a forward does that tracing does not take.
        return network
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and type(modules[str(node.target)]) is nn.Identity:
            node.replace_all_uses_with(node.args[0])
            traced.graph.erase_node(node)
    traced.recompile()
    return traced
