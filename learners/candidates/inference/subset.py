"""A random subset of samples that are read batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from amc_compress.learners.tasks.inputs import (
    Call,
    Split,
    count,
    form,
    mapped,
    merged,
    rows,
    tensors_of,
)


class Subset:
    """Gathers a random subset of samples, in its order if they have one size.

    Args:
        places: Place of every sample in the order, shape (samples,).
        wanted: How many of the first ones to keep.
    """

    def __init__(self, places: Tensor, wanted: int) -> None:
        self._places = places
        self._wanted = wanted
        self._start = 0
        self._form: Any = None
        self._buffer: Any = None  # all samples in one batch, while their sizes are the same
        self._kept: list[Split] = []  # otherwise

    def add(self, batch: Split) -> None:
        """Takes in the next batch."""
        size = count(batch)
        places = self._places[self._start : self._start + size]
        self._start += size
        if len(places) < size:
            return  # more than there should be: what was gathered is not used
        chosen = places < self._wanted
        if self._form is None:
            self._form = form(batch)
            self._buffer = _buffer(batch, self._wanted)
        if self._buffer is not None and form(batch) != self._form:
            self._spill(self._start - size)
        if not bool(chosen.any()):
            return
        if self._buffer is None:
            self._kept.append(rows(batch, chosen))
        else:
            for into, tensor in zip(tensors_of(self._buffer), tensors_of(batch), strict=True):
                if tensor.ndim:
                    into[places[chosen]] = tensor[chosen]

    def _spill(self, come: int) -> None:
        """Goes on by batch: the samples that have come so far are one of them."""
        seen = self._places[:come]
        chosen = seen[seen < self._wanted]
        if len(chosen):
            self._kept.append(rows(self._buffer, chosen))
        self._buffer = None

    def parts(self) -> list[Split]:
        """Returns the samples, in one batch if their sizes are the same."""
        if self._buffer is not None:
            return [self._buffer]
        return merged(self._kept)


def _buffer(batch: Split, size: int) -> Any:
    """Returns an empty batch of some size like another; ``None`` where samples are in lists."""
    if _has_list(batch):
        return None

    def empty(tensor: Tensor) -> Tensor:
        return tensor.new_empty(size, *tensor.shape[1:]) if tensor.ndim else tensor.clone()

    return mapped(empty, batch)


def _has_list(value: Any) -> bool:
    if isinstance(value, Call):
        return _has_list((value.args, value.kwargs))
    if isinstance(value, Mapping):
        return any(_has_list(item) for item in value.values())
    if isinstance(value, tuple):
        return any(_has_list(item) for item in value)
    return isinstance(value, list)
