"""What a network is called with, as JSON: shapes and structure, no numbers of tensors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Call, Inputs

_TYPES = {str(kind).removeprefix("torch."): kind for kind in (
    torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.bool,
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
)}  # fmt: skip


def described(inputs: Inputs) -> Any:
    """Returns one sample's structure; of a tensor of float32 alone its shape."""
    if isinstance(inputs, Tensor) and inputs.dtype == torch.float32:
        return [1, *inputs.shape[1:]]
    return _described(inputs)


def _described(value: Any) -> Any:
    if isinstance(value, Tensor):
        shape = [1, *value.shape[1:]] if value.ndim else []
        return {"tensor": shape, "type": str(value.dtype).removeprefix("torch.")}
    if isinstance(value, Call):
        return {"args": _described(value.args), "kwargs": _described(value.kwargs)}
    if isinstance(value, Mapping):
        return {"mapping": {str(key): _described(item) for key, item in value.items()}}
    if isinstance(value, list):
        return {"list": [_described(item) for item in value[:1]]}  # one item per sample
    if isinstance(value, tuple):
        return {"tuple": [_described(item) for item in value]}
    return {"value": value if isinstance(value, str | int | float | None) else str(value)}


def example(document: Any, device: torch.device) -> Inputs:
    """Returns inputs of the structure that :func:`described` returned.

    Floating-point numbers of a tensor alone are 0. In other inputs they are random, since a
    normalisation of equal numbers hides what is behind it, and integers and booleans are 1: a token
    of every vocabulary, and masks that mask nothing.

    Raises:
        KeyError: If it is no such document, as ``TypeError`` and ``ValueError``.
    """
    if isinstance(document, list):
        return torch.zeros(document, device=device)
    generator = torch.Generator().manual_seed(0)
    found: Inputs = _made(document, device, generator)
    return found


def _made(document: Any, device: torch.device, generator: torch.Generator) -> Any:
    if "tensor" in document:
        shape, kind = document["tensor"], _TYPES[document["type"]]
        if kind.is_floating_point:
            return torch.randn(shape, generator=generator).to(device, kind)
        return torch.ones(shape, dtype=kind, device=device)
    if "args" in document:
        args, kwargs = (_made(document[key], device, generator) for key in ("args", "kwargs"))
        return Call(args, kwargs)
    if "mapping" in document:
        return {key: _made(item, device, generator) for key, item in document["mapping"].items()}
    if "list" in document:
        return [_made(item, device, generator) for item in document["list"]]
    if "tuple" in document:
        return tuple(_made(item, device, generator) for item in document["tuple"])
    return document["value"]
