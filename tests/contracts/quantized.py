"""What a quantized network really costs: counted on its tensors, layer by layer."""

from __future__ import annotations

import torch
from torch import nn

from amc_compress.learners.quantization import quantized_layers
from amc_compress.learners.testing.networks import EXAMPLE


def _macs_per_layer(network: nn.Module) -> dict[str, int]:
    """Multiply-adds of each layer for one image, by watching what really runs."""
    found: dict[str, int] = {}

    def watch(name):
        def hook(module, _, output):
            positions = output[0].numel() // module.weight.shape[0]
            found[name] = found.get(name, 0) + positions * module.weight.numel()

        return hook

    handles = [
        m.register_forward_hook(watch(name))
        for name, m in network.named_modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        network(EXAMPLE)
    for handle in handles:
        handle.remove()
    return found


def _bits(quantizer) -> float:
    return 32 if quantizer is None else quantizer.bits


def _stored_bytes(network: nn.Module) -> float:
    """Bytes of all tensors, those of the weights as codes; ranges of inputs are in the header."""
    quantizers = {
        name: layer.weight_quantizer
        for name, layer in quantized_layers(network).items()
        if layer.weight_quantizer is not None
    }
    total = 0.0
    for key, tensor in network.state_dict().items():
        layer, _, last = key.rpartition(".")
        if ".input_quantizer." in key or last == "assignments":
            continue
        if last == "zero_point" and network.get_submodule(layer).symmetric:
            continue  # zeros, which a file does not store
        coded = layer in quantizers and last == "weight"
        bits = quantizers[layer].bits if coded else 8 * tensor.element_size()
        if last == "zero_point":
            bits = 8  # at most 255, whatever type computes with it
        total += tensor.numel() * bits / 8
    return total


def measured_costs(network: nn.Module, original: nn.Module, header: float) -> dict[str, float]:
    """Cost ratios of a delivered network by name.

    Args:
        network: Quantized.
        original: In float32, uncompressed.
        header: Bytes of the packed file that are no tensor's, as the learner has measured them.
    """
    layers = quantized_layers(network)
    macs, before = _macs_per_layer(network), _macs_per_layer(original)
    weights = {name: original.get_submodule(name).weight.numel() for name in before}
    bits = {name: _bits(layers[name].weight_quantizer) if name in layers else 32 for name in before}
    inputs = {name: _bits(layers[name].input_quantizer) if name in layers else 32 for name in macs}
    learned = {
        name: p.numel() for name, p in network.named_parameters() if "_quantizer." not in name
    }
    stored = _stored_bytes(network) + header
    return {
        "macs": sum(macs.values()) / sum(before.values()),
        "params": sum(learned.values()) / sum(p.numel() for p in original.parameters()),
        "mean_bits": sum(weights[n] * bits[n] for n in before) / sum(weights.values()) / 32,
        "bops": sum(macs[n] * bits[n] * inputs[n] for n in macs) / (1024 * sum(before.values())),
        "bytes": stored / sum(t.numel() * t.element_size() for t in original.state_dict().values()),
    }
