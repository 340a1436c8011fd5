"""Counts the multiply-adds of a run by operation, independently of the graph.

The rules are those of ``torch.utils.flop_counter`` (FLOPs = 2 x MACs) and, for what it leaves out,
those below: recurrent kernels, attention on processors, products of matrices with vectors. An
operation counts what its kernel multiplies: biases, activations, softmax, means and Fourier
transforms count nothing, and neither do look-ups in tables.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from amc_compress.learners.tasks.inputs import Inputs, ask, to_inputs

_FLOPS_PER_MAC = 2
_ATEN = torch.ops.aten


@contextmanager
def visible_attention() -> Iterator[None]:
    """Disables fused encoder layers, whose inside cannot be observed."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def _raw(rule: Callable[..., int]) -> Callable[..., int]:
    """Marks a rule that takes tensors, as the counter wants it; others are given shapes."""
    rule._get_raw = True  # type: ignore[attr-defined]
    return rule


@_raw
def _recurrent_layer(source: Tensor, inputs: Tensor, hidden: Tensor, *_: Any, **__: Any) -> int:
    """One direction of one layer: every step reads its input and the state before."""
    steps = source.numel() // source.shape[-1]
    return _FLOPS_PER_MAC * steps * (inputs.numel() + hidden.numel())


@_raw
def _recurrent_network(source: Tensor, weights: Sequence[Tensor], *_: Any, **__: Any) -> int:
    """All layers and directions in one kernel."""
    steps = source.numel() // source.shape[-1]
    return _FLOPS_PER_MAC * steps * sum(w.numel() for w in weights if w.dim() == 2)


@_raw
def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    """Two products for every head of the query, however many heads share a key."""
    memory = key.shape[-2]
    pairs = query.numel() // query.shape[-1] * memory
    return _FLOPS_PER_MAC * pairs * (query.shape[-1] + value.shape[-1])


@_raw
def _vector_product(matrix: Tensor, vector: Tensor, *_: Any, **__: Any) -> int:
    return _FLOPS_PER_MAC * matrix.numel()


@_raw
def _added_vector_product(bias: Tensor, matrix: Tensor, *_: Any, **__: Any) -> int:
    return _FLOPS_PER_MAC * matrix.numel()


@_raw
def _product(first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    return _FLOPS_PER_MAC * first.numel() * second.shape[-1]


@_raw
def _added_product(bias: Tensor, first: Tensor, second: Tensor, *_: Any, **__: Any) -> int:
    return _FLOPS_PER_MAC * first.numel() * second.shape[-1]


@_raw
def _bilinear(
    first: Tensor, weight: Tensor, second: Tensor, *expanded: Sequence[int], **_: Any
) -> int:
    """Every weight multiplies once per row, as in ``nn.Bilinear``."""
    shape: tuple[int, ...] = ()
    for tensor, axes in zip((first, weight, second), expanded, strict=False):
        for axis in sorted(axes):
            tensor = tensor.unsqueeze(axis)
        shape = torch.broadcast_shapes(shape, tensor.shape)  # type: ignore[no-untyped-call]
    return _FLOPS_PER_MAC * math.prod(shape)


@_raw
def _linear(source: Tensor, weight: Tensor, *_: Any, **__: Any) -> int:
    return _FLOPS_PER_MAC * source.numel() * weight.shape[0]


_OWN_RULES: dict[str, Callable[..., int]] = {
    "mkldnn_rnn_layer": _recurrent_layer,
    "_cudnn_rnn": _recurrent_network,
    "miopen_rnn": _recurrent_network,
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_fused_attention_overrideable": _attention,
    "mv": _vector_product,
    "dot": _vector_product,
    "vdot": _vector_product,
    "addmv": _added_vector_product,
    "addbmm": _added_product,
    "_addmm_activation": _added_product,
    "_trilinear": _bilinear,
    "mkldnn_linear": _linear,
    "_int_mm": _product,
}
# A build of torch without a kernel has no operation of that name.
_ADDED = {getattr(_ATEN, name): rule for name, rule in _OWN_RULES.items() if hasattr(_ATEN, name)}
_RULES: dict[Any, Callable[..., int]] = {**flop_registry, **_ADDED}


def operation_macs(func: Any, args: Sequence[Any], kwargs: dict[str, Any], out: Any) -> int:
    """Returns the multiply-adds of one executed ATen operation, 0 if it multiplies nothing.

    Args:
        func: The operator, as a ``TorchDispatchMode`` gets it.
        args: Its arguments.
        kwargs: Its arguments by name.
        out: What it returned.
    """
    rule = _RULES.get(getattr(func, "overloadpacket", func))
    if rule is None:
        return 0
    return int(rule(*args, **kwargs, out_val=out)) // _FLOPS_PER_MAC


def count_macs(model: nn.Module, inputs: Inputs | Sequence[Any]) -> int:
    """Returns the multiply-adds of one run of a network, over the whole batch.

    Args:
        model: In the mode that it is to run in.
        inputs: What it is called with; a sequence is its arguments.
    """
    # The counter follows the gradients of what modules get, and fails on views of parameters.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for parameter in trained:
            parameter.requires_grad_(False)
        with (
            FlopCounterMode(display=False, custom_mapping=_ADDED) as counter,
            torch.no_grad(),
            visible_attention(),
        ):
            ask(model, to_inputs(inputs))
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)
    return int(counter.get_total_flops()) // _FLOPS_PER_MAC


def count_parameters(model: nn.Module) -> int:
    """Returns the learned numbers of a network; what is shared counts once."""
    return sum(parameter.numel() for parameter in model.parameters())


def stored_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Returns the buffers that a file of the network holds; what is shared stands there once."""
    found = {}
    for prefix, module in model.named_modules():
        for name, tensor in module.named_buffers(recurse=False):
            if name not in module._non_persistent_buffers_set:
                found[f"{prefix}.{name}".lstrip(".")] = tensor
    return {name: found[name] for name, _ in model.named_buffers() if name in found}


def count_bytes(model: nn.Module) -> int:
    """Returns the bytes of a network's tensors: its parameters in float32, and its buffers.

    Buffers that are not stored with it count nothing.
    """
    buffers = stored_buffers(model).values()
    return 4 * count_parameters(model) + sum(t.numel() * t.element_size() for t in buffers)
