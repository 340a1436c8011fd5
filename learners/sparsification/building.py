"""Builds sparse networks."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.bit_layers import is_product
from amc_compress.learners.layers.masked import sparse_layer
from amc_compress.learners.layers.shared_weights import sharing_weights
from amc_compress.learners.layers.structure import replace_module
from amc_compress.learners.layers.weight_forms import write_layer
from amc_compress.learners.sparsification.fitted import FittedWeights
from amc_compress.learners.tracing.branches.left_out import layers_there
from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan, Decision


def weight_of(network: nn.Module, name: str) -> Tensor:
    """Returns the weight of a layer, without its mask if it has one.

    Raises:
        PlanMismatchError: If there is no such convolution or linear layer.
    """
    module = dict(network.named_modules()).get(name)
    if module is None or not is_product(module):
        raise PlanMismatchError(
            f"Expected a convolution or linear layer {name!r} as in the original network, got "
            f"{type(module).__name__}."
        )
    assert isinstance(module.weight, Tensor)
    return module.weight.detach()


def counts_in(
    network: nn.Module, decisions: Sequence[Decision], plan: CompressionPlan
) -> dict[str, int]:
    """Returns layer -> weights that stay in a network with other shapes than the original.

    Those that lose none are not listed, nor are those that went with a branch.

    Args:
        network: The network.
        decisions: Of the original.
        plan: The densities.

    Raises:
        PlanMismatchError: If the plan does not fit, or the network lacks a layer.
    """
    kept = {}
    values = {d.target: v for d, v in zip(decisions, plan.values_for(decisions), strict=True)}
    for name in layers_there(network, values):
        size = weight_of(network, name).numel()
        count = max(math.floor(values[name] * size + 1e-6), 1)  # never more than allowed, or none
        if count < size:
            kept[name] = count
    return kept


def with_zeros(
    network: nn.Module,
    kept: Mapping[str, int],
    fitted: FittedWeights,
    norms: Mapping[str, str],
) -> nn.Module:
    """Returns a copy in plain layers, zeros in their weights, to be evaluated and let go.

    All weights are shared, with the network or with what was fitted.

    Args:
        network: The network, not changed.
        kept: Layer -> number of weights that stay.
        fitted: The weights of its layers.
        norms: Layer -> batch norm right behind it, which takes the intercept of a fit.
    """
    copied = sharing_weights(network).eval()
    modules = dict(copied.named_modules())
    for name, count in kept.items():
        weight, bias = fitted.solve(name, count)
        norm = modules.get(norms.get(name, "?"))
        write_layer(modules[name], weight, bias, norm, shares=True)
    return copied


def masked(
    network: nn.Module,
    kept: Mapping[str, int],
    fitted: FittedWeights,
    norms: Mapping[str, str],
    whole: Iterable[str] = (),
) -> nn.Module:
    """Returns a copy in masked layers, the old weights behind the masks.

    Args:
        network: The network, not changed.
        kept: Layer -> number of weights that stay.
        fitted: The weights of its layers.
        norms: Layer -> batch norm right behind it, which takes the intercept of a fit.
        whole: Layers that get a mask that keeps everything, and else stay as they are: files of
            networks without any mask are not entropy-coded, which costs count on.
    """
    copied = copy.deepcopy(network).eval()
    modules = dict(copied.named_modules())
    for name, count in kept.items():
        layer, mask = modules[name], fitted.mask(name, count)
        weight, bias = fitted.solve(name, count)
        weight = torch.where(mask, weight, layer.get_parameter("weight").detach())
        write_layer(layer, weight, bias, modules.get(norms.get(name, "?")))
        replace_module(copied, name, sparse_layer(layer, mask))
    for name in whole:
        layer = modules[name]
        every = torch.ones_like(layer.get_parameter("weight"), dtype=torch.bool)
        replace_module(copied, name, sparse_layer(layer, every))
    return copied
