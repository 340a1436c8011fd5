"""Other inputs of the same kind as an example: more samples, other numbers, other sizes.

Floating-point tensors get noise. Integers are names of something (tokens, positions, classes), of
which only those that were seen are known to be valid: they are put into another order. Where there
are just two of them they are taken for a mask, which stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Call, Inputs, count, mapped, tensors_of
from amc_env.errors import InputDataError

_FLAGS = 2  # so many different integers are a mask
_LARGE = 3 * 64 * 64  # numbers of an image beyond which every group is proved on less
_MASK, _MASK_DIMS = "attention_mask", 2  # (batch, tokens)
_SIDES = (64, 96, 128, 160)  # of what it is shrunk to


def n_samples(inputs: Inputs) -> int:
    """Returns the samples of inputs, 1 if nothing in them has a batch."""
    try:
        return max(1, count(inputs))
    except InputDataError:
        return 1


def floats(function: Callable[[Tensor], Tensor], inputs: Any) -> Any:
    """Returns inputs with a function applied to their floating-point tensors."""
    return mapped(lambda x: function(x) if x.is_floating_point() else x, inputs)


def described(inputs: Inputs) -> str:
    """Returns the shapes and types of the tensors in inputs, for messages."""
    return ", ".join(f"{tuple(x.shape)} {x.dtype}" for x in tensors_of(inputs))


def first_sample(inputs: Inputs) -> Any:
    """Returns inputs with the first sample alone."""
    return _by_sample(inputs, n_samples(inputs), lambda x: x[:1])


def with_noise(inputs: Inputs, more: int, generator: torch.Generator) -> Any:
    """Returns inputs with ``more`` times as many samples of other numbers behind them."""

    def longer(part: Any) -> Any:
        others = [noise(part, generator) for _ in range(more)]
        return torch.cat((part, *others)) if isinstance(part, Tensor) else sum(others, part)

    return _by_sample(inputs, n_samples(inputs), longer)


def noise(value: Any, generator: torch.Generator) -> Any:
    """Returns a value with other numbers in its tensors."""
    return mapped(partial(_noise, generator=generator), value)


def _noise(tensor: Tensor, generator: torch.Generator) -> Tensor:
    if not tensor.dim():
        return tensor
    if tensor.is_floating_point():
        return torch.randn(tensor.shape, generator=generator).to(tensor)
    if tensor.is_complex() or len(set(tensor.flatten().tolist())) <= _FLAGS:
        return tensor
    flat = tensor.flatten(1) if tensor.dim() > 1 else tensor[None]
    order = torch.randperm(flat.shape[1], generator=generator)
    return flat[:, order].view(tensor.shape)


def padded(inputs: Inputs, parameters: Collection[str]) -> Inputs | None:
    """Returns inputs whose masks leave the end of every sample out, None if there is no mask.

    Code often drops a mask of ones, and runs other operations with one that has zeros.

    Args:
        inputs: The inputs.
        parameters: What the network takes; one that it calls ``attention_mask`` is given if it is
            missing, of the shape of ``input_ids``.
    """
    if isinstance(inputs, Tensor):
        return None
    given = dict(inputs.kwargs)
    ids = given.get("input_ids")
    if _MASK in parameters and given.get(_MASK) is None and isinstance(ids, Tensor):
        given[_MASK] = torch.ones_like(ids)
    whole = Call(inputs.args, given)
    changed = mapped(_with_end_left_out, whole)
    pairs = zip(tensors_of(changed), tensors_of(whole), strict=True)
    return changed if any(a is not b for a, b in pairs) else None


def _with_end_left_out(tensor: Tensor) -> Tensor:
    if tensor.dim() != _MASK_DIMS or tensor.is_floating_point() or not bool((tensor == 1).all()):
        return tensor
    size = tensor.shape[1]
    if size == 1:  # a sample of nothing
        return tensor
    tensor = tensor.clone()
    tensor[:, size - max(1, size // 4) :] = 0
    return tensor


def _by_sample(value: Any, size: int, function: Callable[[Any], Any]) -> Any:
    """Applies a function to everything that has an entry per sample: tensors and lists."""
    inside = partial(_by_sample, size=size, function=function)
    if isinstance(value, Tensor):
        return function(value) if value.dim() and len(value) == size else value
    if isinstance(value, Call):
        return Call(inside(value.args), inside(value.kwargs))
    if isinstance(value, Mapping):
        return {key: inside(item) for key, item in value.items()}
    if isinstance(value, list):
        return function(value) if len(value) == size else value
    if isinstance(value, tuple):
        items = [inside(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


# ---------------------------------------------------------------------- other sizes


def resized(inputs: Inputs, steps: Sequence[tuple[int, int]]) -> Iterator[Inputs]:
    """Yields the inputs in other sizes, all of their tensors changed alike."""
    for step in steps:
        for from_behind in (True, False):
            stretch = partial(_stretched, steps=step, from_behind=from_behind)
            changed = _each_batch(stretch, inputs)
            pairs = zip(tensors_of(inputs), tensors_of(changed), strict=True)
            if any(a.shape != b.shape for a, b in pairs):
                yield changed


def shrunk(inputs: Inputs) -> Iterator[Inputs]:
    """Yields smaller cuts of large images, the smallest first; nothing for other inputs.

    Channels are the same in all of them, and a pass over 64 x 64 pixels has a twelfth of the work
    of one over 224 x 224.
    """
    for side in _SIDES if is_large(inputs) else ():
        cut = mapped(partial(_cropped, side=side), inputs)
        pairs = zip(tensors_of(inputs), tensors_of(cut), strict=True)
        if any(a.shape != b.shape for a, b in pairs):
            yield cut


def is_large(inputs: Inputs) -> bool:
    """Whether there are images of more than 64 x 64 pixels in three channels."""
    return any(x[:1].numel() > _LARGE for x in tensors_of(inputs) if _is_images(x))


def _is_images(tensor: Tensor) -> bool:
    return tensor.dim() > 3 and tensor.is_floating_point()


def _cropped(tensor: Tensor, side: int) -> Tensor:
    """Returns images whose shorter side has a length, the longer one in proportion."""
    if not _is_images(tensor):
        return tensor
    *_, height, width = tensor.shape
    shorter = min(height, width)
    if shorter <= side:
        return tensor
    return tensor[..., : height * side // shorter, : width * side // shorter].clone()


def _each_batch(function: Callable[[Tensor], Tensor], value: Any) -> Any:
    """Applies a function to tensors with a batch; those in lists are samples, and get one."""
    if isinstance(value, Call):
        return Call(_each_batch(function, value.args), _each_batch(function, value.kwargs))
    if isinstance(value, Mapping):
        return {key: _each_batch(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return mapped(lambda x: function(x[None])[0], value)
    if isinstance(value, tuple):
        items = [_each_batch(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return function(value) if isinstance(value, Tensor) else value


def _stretched(tensor: Tensor, steps: tuple[int, int], from_behind: bool) -> Tensor:
    """Repeats or crops an input along its space or its tokens by some quarters of a side.

    Tokens may lie along axis 1 or, ``from_behind``, along the last axis.
    """
    dims = tensor.dim()
    if dims > 3:
        axes = range(2, dims) if from_behind else range(1, dims - 1)
    elif dims == 3:
        axes = range(2, 3) if from_behind else range(1, 2)
    else:  # numbers of tokens, while floats are features
        axes = range(1, dims) if not tensor.is_floating_point() else range(0)
    for axis, step in zip(axes, (*steps, *steps), strict=False):
        size = tensor.shape[axis]
        part = 1 << max(0, (size // 4).bit_length() - 1)
        wanted = size + step * part
        if size > 1 and wanted > 0:
            repeated = torch.cat([tensor] * -(-wanted // size), axis)
            tensor = repeated.narrow(axis, 0, wanted)
    return tensor
