"""What networks are called with: one tensor, or any arguments.

After ``Task.split`` the containers in inputs, targets and outputs mean something: a ``list`` has
one item per sample (images of different sizes, boxes), tuples and dictionaries are structure, and
tensors have the batch first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amc_env.errors import InputDataError


@dataclass(frozen=True)
class Call:
    """The arguments of one call of a network, of any number, kind and nesting.

    Attributes:
        args: By position.
        kwargs: By name.
    """

    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)


Inputs: TypeAlias = Tensor | Call
"""One tensor, the fast path; or whatever else a network is called with."""


class Split(NamedTuple):
    """A batch as :meth:`Task.split` leaves it.

    Attributes:
        inputs: Of the network.
        targets: What is right; ``None`` if there are none.
    """

    inputs: Inputs
    targets: Any


Index: TypeAlias = slice | Tensor
"""Rows of a batch: a slice, places (int64), or a mask (bool)."""


def to_inputs(example: object) -> Inputs:
    """Returns what a user passes as the input of a network in the form that is worked with.

    Args:
        example: A tensor; a tuple or list of arguments; a mapping of keyword arguments
            (``transformers``' ``BatchEncoding`` too); or a :class:`Call`.

    Raises:
        InputDataError: If it is anything else, or holds no tensor.
    """
    if isinstance(example, Tensor):
        return example
    call = example
    if isinstance(example, Mapping):
        call = Call(kwargs=dict(example))
    elif isinstance(example, list | tuple):
        call = Call(args=tuple(example))
    if not isinstance(call, Call) or not any(True for _ in tensors_of(call)):
        raise InputDataError(
            f"Expected inputs as a tensor, a tuple of arguments or a dictionary of keyword "
            f"arguments with a tensor among them, got {type(example).__name__}: pass what the "
            f"network is called with."
        )
    return call


def ask(network: nn.Module, inputs: Inputs) -> Any:
    """Calls a network with its inputs."""
    if isinstance(inputs, Call):
        return network(*inputs.args, **inputs.kwargs)
    return network(inputs)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Asks a network in the block: in ``eval`` mode, without gradients; random numbers stay."""
    modes = [(module, module.training) for module in network.modules()]
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    network.eval()
    try:
        with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks at the end of the block.

    Args:
        handles: What registering them has returned.
    """
    handles = list(handles)
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def runs(network: nn.Module, inputs: Inputs) -> bool:
    """Whether a network takes inputs in ``eval`` mode."""
    try:
        with evaluating(network):
            ask(network, inputs)
    except Exception:  # as many ways as there are networks
        return False
    return True


def outside(values: Tensor, size: int) -> int | None:
    """Returns an integer beyond 0 to ``size - 1``, the lowest or highest; ``None`` without any."""
    low, high = (int(value) for value in values.aminmax())
    if low < 0:
        return low
    return high if high >= size else None


def arguments(inputs: Inputs) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns positional and keyword arguments of a call with these inputs."""
    return (inputs.args, dict(inputs.kwargs)) if isinstance(inputs, Call) else ((inputs,), {})


def mapped(function: Callable[[Tensor], Any], value: Any) -> Any:
    """Returns the same structure with ``function`` applied to each of its tensors."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, Call):
        return Call(mapped(function, value.args), mapped(function, value.kwargs))
    if isinstance(value, Mapping):
        return {key: mapped(function, item) for key, item in value.items()}
    if isinstance(value, list):
        return [mapped(function, item) for item in value]
    if isinstance(value, tuple):
        items = [mapped(function, item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def tensors_of(value: Any) -> Iterator[Tensor]:
    """Yields the tensors of a structure, in its order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Call):
        yield from tensors_of(value.args)
        yield from tensors_of(value.kwargs)
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors_of(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_of(item)


def moved(value: Any, device: str | torch.device, *, non_blocking: bool = False) -> Any:
    """Returns a structure with its tensors on a device."""
    return mapped(lambda tensor: tensor.to(device, non_blocking=non_blocking), value)


def device_of(value: Any) -> torch.device:
    """Returns where the first tensor of a structure is; the processor if there is none."""
    return next((tensor.device for tensor in tensors_of(value)), torch.device("cpu"))


def mask_of(inputs: Inputs) -> Tensor | None:
    """Returns the attention mask (N, tokens) among the inputs: 0 is padding."""
    found = inputs.kwargs.get("attention_mask") if isinstance(inputs, Call) else None
    is_mask = isinstance(found, Tensor) and found.ndim == 2 and len(found) == count(inputs)
    return found if is_mask else None


def counted_rows(values: Tensor, mask: Tensor | None) -> Tensor:
    """Returns values at all places that are no padding, as rows.

    Args:
        values: Shape (samples, tokens, width), or of anything else (..., width).
        mask: See :func:`mask_of`. Values at other places than its tokens all count.

    Returns:
        Shape (rows, width).
    """
    found = values.reshape(-1, values.shape[-1])
    if mask is None or values.shape[:-1] not in (mask.shape, (mask.numel(),)):
        return found
    counts = mask.flatten().to(values.device).bool()
    return found[counts] if bool(counts.any()) else found


def count(value: Any) -> int:
    """Returns the number of samples: the length of the first list or tensor that has one.

    Raises:
        InputDataError: If there is neither.
    """
    found = _count(value)
    if found is None:
        raise InputDataError(
            f"Expected a batch with the samples in the first dimension of its tensors, got "
            f"{type(value).__name__} without any: let the loader make batches of tensors."
        )
    return found


def _count(value: Any) -> int | None:
    if isinstance(value, list):
        return len(value)
    if isinstance(value, Tensor):
        return len(value) if value.ndim else None
    if isinstance(value, Call):
        value = (value.args, value.kwargs)
    items = value.values() if isinstance(value, Mapping) else value
    if isinstance(items, tuple) or isinstance(value, Mapping):
        for item in items:
            if (found := _count(item)) is not None:
                return found
    return None


def rows(value: Any, index: Index) -> Any:
    """Returns some samples of a batch.

    Tensors without a batch dimension, and what is neither tensor nor list, are for all samples.
    """
    if isinstance(value, Tensor):
        return value[index] if value.ndim else value
    if isinstance(value, list):
        if isinstance(index, slice):
            return value[index]
        places = index.nonzero().flatten() if index.dtype == torch.bool else index
        return [value[place] for place in places.tolist()]
    if isinstance(value, Call):
        return Call(rows(value.args, index), rows(value.kwargs, index))
    if isinstance(value, Mapping):
        return {key: rows(item, index) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [rows(item, index) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    return value


def form(value: Any) -> Any:
    """Returns the structure of a value, to be compared: kinds, keys, shapes after the batch."""
    if isinstance(value, Tensor):
        return ("tensor", value.is_floating_point(), tuple(value.shape[1:]) if value.ndim else None)
    if isinstance(value, list):
        return "list"  # one item per sample: they may differ
    if isinstance(value, Call):
        return ("call", form(value.args), form(value.kwargs))
    if isinstance(value, Mapping):
        return ("mapping", *((key, form(value[key])) for key in sorted(value, key=str)))
    if isinstance(value, tuple):
        return ("tuple", *map(form, value))
    return type(value).__name__


def structure(value: Any) -> Any:
    """Returns the structure of a value without the sizes of its tensors."""
    if isinstance(value, Tensor):
        return ("tensor", value.ndim)
    if isinstance(value, Call):
        return ("call", structure(value.args), structure(value.kwargs))
    if isinstance(value, Mapping):
        return ("mapping", *((key, structure(value[key])) for key in sorted(value, key=str)))
    if isinstance(value, tuple):
        return ("tuple", *map(structure, value))
    return type(value).__name__


def joined(values: Sequence[Any]) -> Any:
    """Returns batches of the same :func:`form` as one batch."""
    first = values[0]
    if isinstance(first, Tensor):
        return torch.cat(list(values)) if first.ndim else first
    if isinstance(first, list):
        return [item for value in values for item in value]
    if isinstance(first, Call):
        return Call(joined([v.args for v in values]), joined([v.kwargs for v in values]))
    if isinstance(first, Mapping):
        return {key: joined([value[key] for value in values]) for key in first}
    if isinstance(first, tuple):
        items = [joined(group) for group in zip(*values, strict=True)]
        return type(first)(*items) if hasattr(first, "_fields") else tuple(items)
    return first


def merged(batches: Sequence[Split]) -> list[Split]:
    """Joins neighbouring ``(inputs, targets)`` batches of the same form into one."""
    found: list[list[Split]] = []
    last: Any = None
    for batch in batches:
        this = form(batch)
        if found and this == last:
            found[-1].append(batch)
        else:
            found.append([batch])
        last = this
    return [joined(group) for group in found]


def pieces(value: Any, size: int) -> list[Any]:
    """Splits a batch into batches of at most ``size`` samples."""
    total = count(value)
    return [rows(value, slice(start, start + size)) for start in range(0, total, size)]
