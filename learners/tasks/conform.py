"""Brings batches into the structure, types and sizes that a network takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import (
    Call,
    Inputs,
    mapped,
    moved,
    rows,
    runs,
    structure,
    tensors_of,
)
from amc_env.errors import InputDataError


def plain(tensor: Tensor, *, pixels: bool = True) -> Tensor:
    """Returns numbers in float32, integers in int64, masks as they are.

    Args:
        tensor: An input or a target.
        pixels: Whether bytes are pixels, which are numbers; else they are integers.
    """
    if tensor.is_floating_point() or (pixels and tensor.dtype == torch.uint8):
        return tensor.float()
    return tensor if tensor.dtype == torch.bool or tensor.is_complex() else tensor.long()


def plain_targets(targets: Any, device: str | torch.device = "cpu") -> Any:
    """Returns targets on a device: integers in int64, numbers in float32."""
    return mapped(
        lambda tensor: plain(tensor.detach().to(device, non_blocking=True), pixels=False), targets
    )


def settled(network: nn.Module, inputs: Inputs, device: str | torch.device) -> Inputs:
    """Returns inputs in the types that a network takes, found by asking it once if need be.

    Numbers are float32. Integers stay integers, unless the network runs on floats only, as one
    for pictures of integer pixels does.

    Args:
        network: Not changed; asked in ``eval`` mode, without a gradient.
        inputs: Of at least one sample.
        device: Of the network.
    """
    found: Inputs = mapped(plain, inputs)
    if not any(t.dtype == torch.int64 for t in tensors_of(found)):
        return found
    floats: Inputs = mapped(lambda t: t.float() if t.dtype == torch.int64 else t, found)
    first, other = (moved(rows(some, slice(0, 2)), device) for some in (found, floats))
    if not runs(network, first) and runs(network, other):
        return floats
    return found


def conform(
    inputs: Inputs,
    example: Inputs,
    name: str,
    *,
    strict: bool = True,
    device: str | torch.device = "cpu",
) -> Inputs:
    """Returns inputs like the example: of its structure and types.

    Args:
        inputs: Of a batch.
        example: Of one batch as the network takes it, see :func:`settled`.
        name: What errors call the data; it ends in a space.
        strict: Whether a single tensor of numbers must have the size of the example, and all
            numbers must be finite.
        device: Where to put them.

    Raises:
        InputDataError: If they have another structure, another size, or numbers that are not
            finite.
    """
    if strict and isinstance(inputs, Tensor) and isinstance(example, Tensor):
        _check_size(inputs, example, name)
    if structure(inputs) != structure(example):
        raise InputDataError(_other_structure(inputs, example, name))
    found: Inputs = _alike(inputs, example, device)
    numbers = [tensor for tensor in tensors_of(found) if tensor.is_floating_point()]
    if strict and not all(bool(tensor.isfinite().all()) for tensor in numbers):
        what = "images, got NaN or infinite pixels"
        if not isinstance(found, Tensor):
            what = "inputs, got NaN or infinite numbers"
        raise InputDataError(f"Expected finite {name}{what}.")
    return found


def _check_size(inputs: Tensor, example: Tensor, name: str) -> None:
    # The length of a sequence of tokens may differ from batch to batch.
    if example.is_floating_point() and inputs.shape[1:] != example.shape[1:]:
        raise InputDataError(
            f"Expected {name}images of shape {tuple(example.shape[1:])} like the example input, "
            f"got {tuple(inputs.shape[1:])}; resize them or trace with another example input."
        )


def _alike(value: Any, example: Any, device: str | torch.device) -> Any:
    """Returns a value with the types of an example of the same structure."""
    if isinstance(value, Tensor):
        return value.detach().to(device, example.dtype, non_blocking=True)
    if isinstance(value, Call):
        args = _alike(value.args, example.args, device)
        return Call(args, _alike(value.kwargs, example.kwargs, device))
    if isinstance(value, Mapping):
        return {key: _alike(item, example[key], device) for key, item in value.items()}
    if isinstance(value, list):
        return mapped(lambda tensor: plain(tensor.detach().to(device)), value)
    if isinstance(value, tuple):
        items = [_alike(a, b, device) for a, b in zip(value, example, strict=True)]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def _other_structure(inputs: Inputs, example: Inputs, name: str) -> str:
    wanted, got = described(example), described(inputs)
    return (
        f"Expected {name}batches of the same structure as the first or the example, {wanted}, got "
        f"{got}: let the loader make every batch alike."
    )


def described(value: Any) -> str:
    """Returns the structure of a value in words, for messages."""
    if isinstance(value, Tensor):
        return f"a tensor {tuple(value.shape)} of {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Call):
        parts = [described(item) for item in value.args]
        parts += [f"{key}={described(item)}" for key, item in value.kwargs.items()]
        return f"a call with {', '.join(parts)}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {described(item)}" for key, item in value.items()) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(described, value)) + ")"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return type(value).__name__
