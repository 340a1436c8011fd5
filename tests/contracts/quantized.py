"""What a quantized network really costs: counted on its tensors, layer by layer."""

from __future__ import annotations

import math

import torch
from contracts.learner_contract import EXAMPLE
from torch import nn

from learners.quantization import quantized_layers


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


def _stored_bytes(network: nn.Module, granularity: str, bucket: int, extra: float) -> float:
    layers = quantized_layers(network)
    total = 0.0
    for layer in layers.values():
        weight, quantizer = layer.weight, layer.weight_quantizer
        total += 0 if layer.bias is None else 4 * layer.bias.numel()
        if quantizer is None:
            total += 4 * weight.numel()
            continue
        buckets = {
            "channel": weight.shape[0],
            "tensor": 1,
            "split": math.ceil(weight.numel() / bucket),
        }[granularity]
        codebook = getattr(quantizer, "codebook", None)
        entries = 0 if codebook is None else 4 * codebook.shape[1]
        total += weight.numel() * quantizer.bits / 8 + buckets * (extra + entries)
    for name, tensor in network.state_dict().items():
        if not any(name.startswith(f"{layer}.") for layer in layers):
            total += tensor.numel() * tensor.element_size()
    return total


def measured_costs(
    network: nn.Module,
    original: nn.Module,
    *,
    granularity: str = "channel",
    bucket_size: int = 256,
    bytes_per_bucket: float = 4.0,
) -> dict[str, float]:
    """Cost ratios of a delivered network by name."""
    layers = quantized_layers(network)
    macs, before = _macs_per_layer(network), _macs_per_layer(original)
    weights = {name: original.get_submodule(name).weight.numel() for name in before}
    bits = {name: _bits(layers[name].weight_quantizer) if name in layers else 32 for name in before}
    inputs = {name: _bits(layers[name].input_quantizer) if name in layers else 32 for name in macs}
    learned = {
        name: p.numel() for name, p in network.named_parameters() if "_quantizer." not in name
    }
    stored = _stored_bytes(network, granularity, bucket_size, bytes_per_bucket)
    return {
        "macs": sum(macs.values()) / sum(before.values()),
        "params": sum(learned.values()) / sum(p.numel() for p in original.parameters()),
        "mean_bits": sum(weights[n] * bits[n] for n in before) / sum(weights.values()) / 32,
        "bops": sum(macs[n] * bits[n] * inputs[n] for n in macs) / (1024 * sum(before.values())),
        "bytes": stored / sum(t.numel() * t.element_size() for t in original.state_dict().values()),
    }
