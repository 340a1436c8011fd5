"""Masks made permanent: plain layers whose weights are zero."""

from __future__ import annotations

import copy

import torch
from torch import nn

from amc_compress.learners.layers.masked import SparseConv2d, SparseLayer, SparseLinear, twin_of


def finalise(network: nn.Module) -> nn.Module:
    """Returns a copy with plain layers that have zeros where the masks are false.

    What was kept behind a mask is gone. The outputs are the same; what reads plain layers
    (exporters, fusion, other tools) reads the result. Quantized layers stay as they are.

    Args:
        network: With or without masked layers; it is not changed.
    """
    copied = copy.deepcopy(network)
    if isinstance(copied, SparseConv2d | SparseLinear):
        return _plain(copied)
    plain: dict[SparseLayer, nn.Module] = {}  # a module that stands in two places stays one
    for module in list(copied.modules()):
        for name, child in list(module._modules.items()):  # named_children tells a module once
            if isinstance(child, SparseConv2d | SparseLinear):
                if child not in plain:
                    plain[child] = _plain(child)
                setattr(module, name, plain[child])
    return copied


@torch.no_grad()
def _plain(layer: SparseLayer) -> nn.Module:
    kind: type[nn.Conv2d] | type[nn.Linear] = (
        nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    )
    plain = twin_of(kind, layer)
    weight = layer.masked_weight().detach().clone()
    plain.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    return plain
