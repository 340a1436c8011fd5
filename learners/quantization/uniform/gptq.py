"""Rounding that repairs itself: GPTQ (Frantar et al. 2022, 2210.17323) for uniform quantizers.

Inputs of a layer are those of the original network, so that layers are rounded independently of
each other, and the bits of one say nothing about another. (The reference rounds them one after the
other, each with the inputs that the rounded ones before it make.)

The sweep is greedy: of few inputs an output may lose more than by nearest values, and keeps these.

Scales of the rule ``"mse"`` are those of least error of the outputs instead of the weights, if the
inputs were uncorrelated: the squared error of a weight counts as often as the squared input.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.candidates.second_order.levels import Level
from amc_compress.learners.candidates.second_order.means import bias_for
from amc_compress.learners.candidates.second_order.sweep import Grid, Zeros, by_importance, sweep
from amc_compress.learners.layers.quantized import QuantizedLayer
from amc_compress.learners.layers.shared_weights import take_weight
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer, rounded_scales
from amc_compress.learners.quantization.uniform.scales import weight_scales

Pruned = Callable[[LayerReconstruction], tuple[Zeros, Tensor | None]]
"""How what becomes zero is chosen, and the order in which the inputs then have to go."""


@dataclass(frozen=True)
class Rounding:
    """How a layer is rounded.

    Args:
        rule: Name in ``RANGE_RULES``, or ``"lsq"``: how scales are found; those of groups from the
            weights as they are when the sweep comes to them.
        act_order: Whether the inputs of the largest moments come first. Groups then have the
            scales of the original weights, since their inputs are met one by one.
    """

    rule: str
    act_order: bool = False

    def solve(
        self,
        layer: LayerReconstruction,
        nearest: UniformQuantizer,
        mask: Tensor | None = None,
        pruned: Pruned | None = None,
    ) -> Level:
        """Returns codes and scales of a layer, and the bias that goes with them if it has one.

        With ``pruned`` its mask as well: what becomes zero is chosen in the same sweep (Frantar and
        Alistarh 2023, 2301.00774, section 3.5), in which it is taken up like what is rounded.

        Args:
            layer: Its weights, zeros where they do not count, and the moments of its inputs.
            nearest: Its quantizer for rounding to the nearest value.
            mask: Which weights count, the shape of the stored weight; the others stay zero.
            pruned: What else becomes zero.
        """
        gram = layer.gram  # of a large network made anew whenever it is asked for
        stored = layer.form.stored(layer.weight.reshape(layer.shape)).float()
        importance = gram.diagonal(dim1=1, dim2=2).unsqueeze(1).expand_as(layer.weight)
        if self.rule == "mse":
            counts = layer.form.stored(importance.reshape(layer.shape)).float()
            nearest = _ranged(nearest, stored, mask, counts)
        grid = self._grid(layer, nearest, importance)
        zeros, order = (None, None) if pruned is None else pruned(layer)
        if self.act_order and order is None:
            order = by_importance(gram)
        swept = sweep(
            layer.weight,
            gram,
            grid=grid,
            zeros=zeros,
            stays=None if mask is None else layer.matrix(mask).bool(),
            order=order,
        )
        matrix, better = swept.weight, torch.ones_like(layer.weight[:, :, 0], dtype=torch.bool)
        if zeros is None:
            plain = layer.matrix(nearest(stored))
            better = _errors(gram, layer.weight - matrix) < _errors(gram, layer.weight - plain)
            matrix = torch.where(better.unsqueeze(2), matrix, plain)
        quantizer = copy.deepcopy(nearest)
        if grid.fit is not None and order is None:
            _take_scales(quantizer, grid, better)
        weight = layer.form.stored(matrix.reshape(layer.shape)).float()
        level = {
            "codes": quantizer.encode(weight),
            "scale": quantizer.scale.detach().clone(),
            "zero_point": quantizer.zero_point.clone(),
        }
        if zeros is not None:
            level["mask"] = layer.form.stored(swept.stays.reshape(layer.shape))
        bias = bias_for(layer, layer.weight - matrix)
        return level if bias is None else {**level, "bias": bias}

    def _grid(
        self, layer: LayerReconstruction, nearest: UniformQuantizer, importance: Tensor
    ) -> Grid:
        """Returns the grid of the nearest values; of groups it is fitted on the way."""
        like = layer.form.stored(torch.empty(layer.shape, device=layer.weight.device))
        step, low, high = (
            layer.matrix(x).transpose(1, 2).contiguous() for x in nearest.steps_of(like)
        )
        # Groups of a transposed convolution share its rows.
        rows = not layer.form.inputs_first or layer.form.groups == 1
        if nearest.granularity != "group" or self.act_order or not rows:
            return Grid(step, low, high)

        def fit(weight: Tensor, piece: slice) -> tuple[Tensor, Tensor, Tensor]:
            lines = weight.flatten(0, 1).float()
            counts = importance[:, :, piece].flatten(0, 1).float()
            scale, zero = weight_scales(
                lines,
                nearest.bits,
                self.rule,
                symmetric=nearest.symmetric,
                granularity="channel",
                bucket_size=nearest.bucket_size,
                importance=counts if self.rule == "mse" else None,
            )
            scale = rounded_scales(scale, nearest.scale_type)
            ends = nearest.quant_min - zero, nearest.quant_max - zero
            step, low, high = (x.view(weight.shape[:2]).to(weight) for x in (scale, *ends))
            return step, low, high

        return Grid(step, low, high, fit, nearest.bucket_size)


def _ranged(
    like: UniformQuantizer, weight: Tensor, mask: Tensor | None, importance: Tensor
) -> UniformQuantizer:
    """Returns a quantizer with the scales of least squared error, by importance."""
    scale, zero = weight_scales(
        weight,
        like.bits,
        "mse",
        symmetric=like.symmetric,
        granularity=like.granularity,
        bucket_size=like.bucket_size,
        axis=like.axis,
        mask=mask,
        importance=importance,
    )
    found = copy.deepcopy(like)
    scale = rounded_scales(scale.view(-1), like.scale_type)
    _set_scales(found, {"scale": scale, "zero_point": zero.view(-1)})
    return found


def _errors(gram: Tensor, lost: Tensor) -> Tensor:
    """Returns the squared error of every output that lacks some weight, (conv groups, rows)."""
    return ((lost @ gram) * lost).sum(2)


@torch.no_grad()
def _take_scales(quantizer: UniformQuantizer, grid: Grid, better: Tensor) -> None:
    """Gives a quantizer of groups the scales that were found, of the outputs that take them."""
    scale, low = (x[:, :: grid.piece].transpose(1, 2).flatten(0, 1) for x in (grid.step, grid.low))
    takes = better.view(-1, 1).expand_as(scale).reshape(-1)
    zero = (quantizer.quant_min - low).round().to(torch.int32)
    quantizer.scale.copy_(torch.where(takes, scale.reshape(-1).float(), quantizer.scale))
    quantizer.zero_point.copy_(torch.where(takes, zero.reshape(-1), quantizer.zero_point))


@torch.no_grad()
def weight_of(level: Level, like: UniformQuantizer) -> Tensor:
    """Returns the weight of a level.

    Args:
        level: The level.
        like: A quantizer of the same bits and granularity; its own scales do not matter.
    """
    quantizer = copy.deepcopy(like)
    _set_scales(quantizer, level)
    return quantizer.decode(level["codes"])


@torch.no_grad()
def write_level(module: nn.Module, level: Level) -> None:
    """Gives a quantized layer the weights of a level: exactly what its codes stand for.

    If it has a mask, behind that stays what the layer has there.
    """
    assert isinstance(module, QuantizedLayer)
    quantizer = module.weight_quantizer
    assert isinstance(quantizer, UniformQuantizer)
    _set_scales(quantizer, level)
    weight = quantizer.decode(level["codes"])
    if "mask" in level:
        module.weight_mask = level["mask"].clone()
        weight = torch.where(level["mask"], weight, module.get_parameter("weight"))
    take_weight(module, weight)
    if "bias" in level:
        assert isinstance(module.bias, Tensor)
        module.bias.copy_(level["bias"])


@torch.no_grad()
def _set_scales(quantizer: UniformQuantizer, level: Level) -> None:
    quantizer.scale.copy_(level["scale"])
    quantizer.zero_point.copy_(level["zero_point"])
