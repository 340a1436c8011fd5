"""Which weights stay, and what they become, in one sweep over the inputs of a layer.

SparseGPT (Frantar and Alistarh 2023, 2301.00774): of every 128 inputs those weights go that the
outputs miss least, ``w^2 / [H^-1]_ii`` each, and the weights of the inputs behind take up what is
lost. Unlike magnitudes that asks how large the inputs are, and how far others stand in for them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.levels import Level
from amc_compress.learners.candidates.second_order.means import bias_for
from amc_compress.learners.candidates.second_order.sweep import BLOCK, Zeros, sweep
from amc_compress.learners.sparsification.patterns import Pattern


def takes(pattern: Pattern, shape: torch.Size) -> bool:
    """Whether the sweep knows a pattern for a weight of a shape with outputs first."""
    return pattern.block == 1 and (not pattern.m or shape[1] % pattern.m == 0)


def sparsegpt(layer: LayerReconstruction, pattern: Pattern, keep: int) -> Level:
    """Returns the weight of a layer with zeros, its mask, and the bias that goes with it.

    Args:
        layer: The original weights and the moments of the layer's inputs.
        pattern: Of the zeros; N:M groups run over the input channels at each kernel position.
        keep: Weights that stay: exactly so many, except for N:M (see ``Pattern.mask``).
    """
    zeros, order = choice(layer, pattern, keep)
    swept = sweep(layer.weight, layer.gram, zeros=zeros, order=order)
    level = {
        "weight": layer.form.stored(swept.weight.reshape(layer.shape)).float(),
        "mask": layer.form.stored(swept.stays.reshape(layer.shape)),
    }
    bias = bias_for(layer, layer.weight - swept.weight)
    return level if bias is None else {**level, "bias": bias}


def choice(layer: LayerReconstruction, pattern: Pattern, keep: int) -> tuple[Zeros, Tensor | None]:
    """Returns how a sweep chooses what becomes zero, and the order in which it has to go.

    Args:
        layer: See :func:`sparsegpt`.
        pattern: Likewise.
        keep: Likewise.
    """
    groups, _, count = layer.weight.shape
    size = layer.weight.numel()
    if not pattern.m:
        return _unstructured(size, count, keep), None
    zeros = _n_of_m(max(pattern.n, round(keep * pattern.m / size)), pattern.m)
    if layer.kernel_size == 1:
        return zeros, None
    places = torch.arange(count, device=layer.weight.device)
    return zeros, places.view(-1, layer.kernel_size).T.reshape(1, -1).expand(groups, -1)


def _unstructured(size: int, count: int, keep: int) -> Zeros:
    """Chooses the same share of every block of columns, in all ``size - keep`` of them."""

    def choose(start: int, loss: Tensor) -> Tensor:
        stop = start + loss.shape[1]
        goes = round((size - keep) * stop / count) - round((size - keep) * start / count)
        stays = torch.ones(loss.numel(), dtype=torch.bool, device=loss.device)
        stays[loss.flatten().argsort(stable=True)[:goes]] = False
        return stays.view(loss.shape)

    return Zeros(BLOCK, choose)


def _n_of_m(n: int, m: int) -> Zeros:
    """Chooses ``n`` of every ``m`` columns in a row, for each output."""

    def choose(_: int, loss: Tensor) -> Tensor:
        return loss.argsort(dim=1, descending=True, stable=True).argsort(1) < n

    return Zeros(m, choose)
