"""The integers of quantized weights, as ONNX files hold them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from amc_compress.learners.layers.bit_layers import along
from amc_compress.learners.layers.quantized import QuantizedLayer, QuantizedWeight
from amc_compress.learners.quantization.uniform.quantizer import SMALLEST_SCALE, UniformQuantizer


def runs_in_integers(layer: QuantizedLayer) -> bool:
    """Returns whether a layer's weights and inputs are both integers times one scale."""
    weights = layer.weight_quantizers().get("weight")
    return layer.input_quantizer is not None and has_integers(weights)


def has_integers(quantizer: Any) -> bool:
    """Returns whether the numbers are integers times one scale per tensor or channel."""
    return isinstance(quantizer, UniformQuantizer) and quantizer.granularity in (
        "tensor",
        "channel",
    )


def weight_integers(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Returns weights in units of their scales, int32 in their own shape, and the scales.

    The zero points are subtracted, because ONNX Runtime wants the same one in all channels. There
    is one scale for each index along the axis of the quantizer.

    Args:
        weight: One for whose quantizer :func:`has_integers` holds.
    """
    quantizer, values = weight.quantizer, weight.values.detach()
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"Expected uniform weights, got {type(quantizer).__name__}.")
    zero = along(quantizer.zero_point, quantizer.axis, values.dim()).to(torch.int32)
    integers = quantizer.encode(values).to(torch.int32) + quantizer.quant_min - zero
    if weight.mask is not None:
        integers = integers * weight.mask
    return integers.cpu().numpy(), scales_of(quantizer, values.shape[quantizer.axis])


def fits_int8(integers: np.ndarray) -> bool:
    """Returns whether all are in -128 .. 127."""
    return bool(integers.min() >= -128 and integers.max() <= 127)


def scales_of(quantizer: UniformQuantizer, count: int) -> np.ndarray:
    """Returns the scales as used, float32, shape (count,), one for each channel."""
    scale = quantizer.scale.detach().float().cpu().numpy()
    if quantizer.learned:  # as the quantizer does: a gradient step may carry it across zero
        scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
    return np.broadcast_to(scale, (count,)).copy()
