"""Weight sparsification: zeros that stay zeros (Zhu & Gupta 2017; Han et al. 2015)."""

from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.sparsification.learner import WeightSparsification
from amc_compress.learners.sparsification.patterns import Pattern
from amc_compress.learners.sparsification.schedule import GradualSparsity, SparsitySchedule

__all__ = ["WeightSparsification", "GradualSparsity", "SparsitySchedule", "Pattern", "finalise"]
