"""Costs of a network counted by others than the graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import PackedSequence
from torch.utils.flop_counter import FlopCounterMode

from amc_env.graph import LayerGraph


def counted_flops(model: nn.Module, *example: Tensor) -> int:
    """FLOPs by PyTorch's own counter, which does not see fused attention on processors."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with (
            FlopCounterMode(display=False) as counter,
            torch.no_grad(),
            sdpa_kernel(SDPBackend.MATH),
        ):
            model(*example)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return int(counter.get_total_flops())


def counted_macs(model: nn.Module, *example: Tensor) -> int:
    """Multiply-adds by PyTorch's own counter, and by hand what it leaves out.

    That is the one kernel of an LSTM, products with vectors, and ``nn.Bilinear``.
    """
    missing = 0

    def add(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal missing
        source = inputs[0].data if isinstance(inputs[0], PackedSequence) else inputs[0]
        if isinstance(module, nn.LSTM):
            gates = sum(w.numel() for w in module.parameters() if w.dim() == 2)
            missing += source.numel() // source.shape[-1] * gates
        elif isinstance(module, nn.Bilinear):
            missing += len(output) * module.weight.numel()
        else:
            missing += getattr(module, "macs_by_hand", 0)

    handles = [module.register_forward_hook(add) for module in model.modules()]
    flops = counted_flops(model, *example)
    for handle in handles:
        handle.remove()
    return flops // 2 + missing


def counted_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def counted_bytes(model: nn.Module) -> int:
    tensors = [*model.parameters(), *model.buffers()]
    kept = [t for name, t in model.named_buffers() if "._cut_" in f".{name}"]
    return sum(t.numel() * t.element_size() for t in tensors) - sum(
        t.numel() * t.element_size() for t in kept
    )


def graph_flops(graph: LayerGraph, kept: Mapping[str, float]) -> float:
    return 2 * sum(layer.macs(kept) for layer in graph.layers)


def graph_parameters(graph: LayerGraph, kept: Mapping[str, float]) -> float:
    layers = (
        layer.weights(kept) + layer.has_bias * layer.out_width.at(kept)
        for layer in graph.layers
        if layer.kind != "matmul"
    )
    channels = (entry.n_parameters * entry.width.at(kept) for entry in graph.channel_parameters)
    return sum(layers) + sum(channels) + graph.other_parameters


def graph_bytes(graph: LayerGraph, kept: Mapping[str, float]) -> float:
    buffers = sum(entry.n_buffers * entry.width.at(kept) for entry in graph.channel_parameters)
    return 4 * (graph_parameters(graph, kept) + buffers) + graph.other_buffer_bytes
