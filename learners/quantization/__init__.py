"""Quantization: k-bit weights and activations, uniform or by codebook."""

from amc_compress.learners.layers.quantized import (
    QuantizedConv2d,
    QuantizedLinear,
    quantized_layers,
)
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.structure import describe, fold_norms, rebuild
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.quantization.codebook.learner import CodebookQuantization
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.quantization.uniform.ranges import RANGE_RULES, clipping_ranges

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
    "describe",
    "rebuild",
    "save_packed",
    "load_packed",
]
