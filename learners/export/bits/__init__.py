"""Bits per layer as other libraries take them: each of their dictionaries is a pure function."""

from amc_compress.learners.export.bits.configs import (
    auto_round_config,
    compressed_tensors_config,
    gptqmodel_config,
    torchao_config,
)
from amc_compress.learners.export.bits.llama_cpp import tensor_types
from amc_compress.learners.export.bits.schemes import (
    WeightScheme,
    check_linear,
    network_schemes,
    plan_schemes,
)

__all__ = [
    "WeightScheme",
    "auto_round_config",
    "compressed_tensors_config",
    "gptqmodel_config",
    "check_linear",
    "network_schemes",
    "plan_schemes",
    "tensor_types",
    "torchao_config",
]
