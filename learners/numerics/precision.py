"""Compute dtype selection: one rule, decided once per network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc_compress.learners.numerics.proved_operators import ProvedOperators
from amc_env.validation.checks import check_known, shown
from amc_env.validation.sentences import first_line

PRECISIONS = ("auto", "fp32", "bf16", "fp16")
_ROUNDINGS = 4


def resolve_precision(precision: str, device: str | torch.device = "cpu") -> torch.dtype:
    """Return the dtype of matrix products: bf16 or fp32.

    Args:
        precision: ``"fp32"``, ``"bf16"``, or ``"auto"``: bf16 where the processor (AVX512-BF16,
            AMX) or the GPU multiplies in it, else fp32. ``"fp16"`` is fp32 here: its range is too
            small without the scaled losses of a training, see :func:`training_dtype`.
        device: Where the network runs.

    Raises:
        ValueError: The name is unknown, or nothing can be computed on the device.
    """
    check_device(device)
    check_known("precision", precision, PRECISIONS)
    if precision == "auto":
        return torch.bfloat16 if _has_bf16(torch.device(device)) else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def check_device(device: str | torch.device | None) -> None:
    """Checks that numbers can be computed on a device.

    Raises:
        ValueError: If they cannot: it is not there, or is ``"meta"``.
    """
    if device is None:
        return
    try:
        if torch.device(device).type != "cpu":
            torch.zeros(1, device=device).item()
    except Exception as error:  # every backend has errors of its own
        raise ValueError(
            f"Expected a device that computes, got {shown(str(device))} ({first_line(error)}); use "
            f"another one, such as cpu."
        ) from error


def working_dtype(
    model: nn.Module, precision: str, device: str | torch.device = "cpu"
) -> torch.dtype:
    """Return the dtype that training and evaluation of ``model`` use.

    As :func:`resolve_precision`, but ``"auto"`` keeps networks with depthwise convolutions in
    fp32 on a processor: measured with one thread, bf16 trains ResNet-20 1.5-2 times as fast,
    MobileNet V1 at 0.7 and the 8 x 8 network at 0.8 of the speed of fp32.
    """
    dtype = resolve_precision(precision, device)
    if precision == "auto" and torch.device(device).type == "cpu" and _has_depthwise(model):
        return torch.float32
    return dtype


def training_dtype(
    model: nn.Module, precision: str, device: str | torch.device = "cpu"
) -> torch.dtype:
    """Return the dtype that the gradients of ``model`` are computed in.

    As :func:`working_dtype`, and float16 for ``"fp16"``: its loss has to be scaled.
    """
    if precision == "fp16":
        check_device(device)
        return torch.float16
    return working_dtype(model, precision, device)


@contextmanager
def autocast(dtype: torch.dtype, device: str | torch.device) -> Iterator[Mapping[str, None]]:
    """Enters the context in which a network computes in ``dtype`` (its weights stay fp32).

    On a processor, operators that are not proved in bf16 for their shapes compute in fp32, see
    ``proved_operators.py``, and so do those that cannot compute in bf16 at all: yields their
    names, once they have run.
    """
    kind = torch.device(device).type
    rounds = dtype != torch.float32
    proving = ProvedOperators() if dtype == torch.bfloat16 and kind == "cpu" else None
    # The cache of cast weights would go stale between training steps inside one context; every
    # step opens its own.
    low = dtype if rounds else torch.bfloat16
    with torch.autocast(kind, low, enabled=rounds), proving or nullcontext():
        yield {} if proving is None else proving.exact


def hides_in_rounding(network: nn.Module) -> bool:
    """Whether a channel varies by a few roundings of bf16 around its mean, ahead of a batch norm.

    So it is with channels that compression has cut off from nearly all images. A norm divides by
    that spread: rounding becomes the signal, and the accuracy another one than in fp32.
    """
    for norm in network.modules():
        if not isinstance(norm, _BatchNorm) or norm.running_var is None:
            continue
        assert norm.running_mean is not None
        rounding = norm.running_mean * (_ROUNDINGS * torch.finfo(torch.bfloat16).eps)
        if bool((norm.running_var + norm.eps < rounding.square()).any()):
            return True
    return False


def _has_depthwise(model: nn.Module) -> bool:
    return any(
        isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1
        for module in model.modules()
    )


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    # Not public, hence the guard: a PyTorch without them computes in fp32, which is always right.
    checks = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, name, bool)()) for name in checks)
