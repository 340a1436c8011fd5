"""Shared tensors, such as tied weights: files store them once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")


def shared_names(model: nn.Module) -> dict[str, str]:
    """Returns the further names of shared parameters and buffers -> the first name of each."""
    first: dict[int, str] = {}
    further = {}
    for named in (model.named_parameters, model.named_buffers):
        for name, tensor in named(remove_duplicate=False):
            if first.setdefault(id(tensor), name) != name:
                further[name] = first[id(tensor)]
    return further


def with_shared(stored: Mapping[str, _T], model: nn.Module) -> dict[str, _T]:
    """Returns what a file holds, under all names that the network has for it.

    Args:
        stored: By name; of a shared tensor at least one of its names.
        model: The network.
    """
    complete = dict(stored)
    further = shared_names(model)
    # A file by others may hold any of the names.
    held = {first: name for name, first in further.items() if name in stored}
    for name, first in further.items():
        source = first if first in stored else held.get(first)
        if source is not None:
            complete.setdefault(first, stored[source])
            complete.setdefault(name, stored[source])
    return complete
