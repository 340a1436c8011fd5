"""Copies of a network that hold its weights no second time."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn


def sharing_weights(network: nn.Module, but: Collection[str] = ()) -> nn.Module:
    """Returns a copy whose weights are the numbers of the network itself, in parameters of its own.

    Only for what does not change weights in place; a weight may be given another parameter
    (:func:`take_weight`). Biases, norms (whatever has a single axis) and buffers are copied.

    Args:
        network: The network; it is not changed.
        but: Modules whose own weights are copied, too.
    """
    memo: dict[int, Any] = {}
    own = {id(p) for name in but for p in network.get_submodule(name).parameters(recurse=False)}
    for parameter in network.parameters():
        # What an own class of parameters is copied like is its own.
        if parameter.dim() > 1 and type(parameter) is nn.Parameter and id(parameter) not in own:
            memo[id(parameter)] = nn.Parameter(parameter.detach(), parameter.requires_grad)
    return copy.deepcopy(network, memo)


def holders_of(modules: Iterable[nn.Module]) -> Counter[int]:
    """Returns id of a parameter -> how many of some modules hold it."""
    return Counter(id(p) for module in modules for p in module.parameters(recurse=False))


def take_weight(module: nn.Module, weight: Tensor) -> None:
    """Gives a module other numbers as its weight, without a copy if they are laid out alike.

    Args:
        module: With a weight of its own, which others do not use.
        weight: Not changed, and not to be changed.
    """
    before = module.get_parameter("weight")
    alike = weight.dtype == before.dtype and weight.device == before.device
    if not alike or weight.stride() != before.stride():
        weight = torch.empty_like(before).copy_(weight)
    module.weight = nn.Parameter(weight.detach(), before.requires_grad)
