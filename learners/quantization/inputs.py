"""Quantizers of activations: one scale per tensor, static, from calibration images."""

from __future__ import annotations

import torch

from amc_compress.learners.quantization.calibration import LayerInputs
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer, affine_parameters
from amc_compress.learners.quantization.uniform.ranges import clipping_ranges


def input_quantizer(
    seen: LayerInputs, bits: int, rule: str, name: str, *, learned: bool = False
) -> UniformQuantizer:
    """Returns the affine quantizer of a layer's input; unsigned behind a ReLU.

    Args:
        seen: What went into the layer on calibration images.
        bits: Bits per number.
        rule: How the range is found.
        name: Name of the layer, for messages.
        learned: Whether the scale is trained.
    """
    # The extremes are exact, the sample in between is random.
    values = torch.cat([seen.sample, seen.sample.new_tensor([seen.low, seen.high])])
    low, high = clipping_ranges(
        values[None], [bits], rule, symmetric=False, name=f"the input of layer {name!r}"
    )
    scale, zero = affine_parameters(low[0], high[0], bits, symmetric=False)
    return UniformQuantizer(
        bits, scale, zero, symmetric=False, learned=learned, numbers=seen.numbers
    )
