"""Quantization: k-bit weights and activations, uniform or by codebook."""

from learners.quantization.codebook import CodebookQuantization
from learners.quantization.codebook_quantizer import CodebookQuantizer
from learners.quantization.learner import QuantizationLearner
from learners.quantization.modules import QuantizedConv2d, QuantizedLinear, quantized_layers
from learners.quantization.packing import load_packed, save_packed
from learners.quantization.quantizer import Quantizer
from learners.quantization.ranges import RANGE_RULES, clipping_ranges
from learners.quantization.structure import bake, describe, fold_norms, rebuild
from learners.quantization.uniform import UniformQuantization
from learners.quantization.uniform_quantizer import UniformQuantizer

__all__ = [
    "QuantizationLearner",
    "UniformQuantization",
    "CodebookQuantization",
    "Quantizer",
    "UniformQuantizer",
    "CodebookQuantizer",
    "QuantizedConv2d",
    "QuantizedLinear",
    "quantized_layers",
    "RANGE_RULES",
    "clipping_ranges",
    "fold_norms",
    "bake",
    "describe",
    "rebuild",
    "save_packed",
    "load_packed",
]
