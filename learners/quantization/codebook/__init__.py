"""Quantization by learned codebooks."""

from amc_compress.learners.quantization.codebook.learner import CodebookQuantization

__all__ = ["CodebookQuantization"]
