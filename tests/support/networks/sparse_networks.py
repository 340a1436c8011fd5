"""Networks with masks, and what the packed file takes for their values."""

from __future__ import annotations

import copy

import numpy as np
import torch
from torch import nn

from amc_compress.learners.layers.masked import masked_layers, sparse_layer
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import replace_module
from amc_compress.learners.packing.sparse import encode
from amc_env.costs.sparse_form import measured_value_bits
from amc_env.costs.storage import FLOAT_BITS


def layer_names(network: nn.Module) -> list[str]:
    return [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]


def largest(weight: torch.Tensor, density: float) -> torch.Tensor:
    """The mask of the largest magnitudes; at least one stays."""
    keep = max(1, round(weight.numel() * density))
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    mask[weight.detach().abs().flatten().argsort(descending=True)[:keep]] = True
    return mask.view_as(weight)


def sparsified(network: nn.Module, densities: dict[str, float] | float) -> nn.Module:
    """A copy in which layers keep their largest weights; the others stay behind the mask."""
    network = copy.deepcopy(network).eval()
    if isinstance(densities, float | int):
        densities = dict.fromkeys(layer_names(network), float(densities))
    for name, density in densities.items():
        layer = network.get_submodule(name)
        replace_module(network, name, sparse_layer(layer, largest(layer.weight, density)))
    return network


def measured_points(network: nn.Module) -> dict[str, tuple[int, float, float]]:
    """Layer -> bits, density and measured bits per value, for ``StorageFormat.value_bits``."""
    found = {}
    for name, layer in masked_layers(network).items():
        mask = layer.weight_mask.numpy()
        bits, numbers = None, layer.masked_weight().detach().numpy()
        if name in quantized_layers(network):
            bits = layer.weight_quantizer.bits
            numbers = layer.weight_quantizer.encode(layer.weight.detach()).numpy()
        density = float(np.mean(mask))
        size = len(encode(numbers, mask, bits))
        value = measured_value_bits(size, mask.size, density)
        found[name] = (FLOAT_BITS if bits is None else bits, density, value)
    return found
