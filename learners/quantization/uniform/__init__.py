"""Uniform quantization."""

from amc_compress.learners.quantization.uniform.learner import UniformQuantization

__all__ = ["UniformQuantization"]
