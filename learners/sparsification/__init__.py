"""Weight sparsification: zeros that stay zeros (Zhu & Gupta 2017; Han et al. 2015)."""

from learners.sparsification.finalise import finalise
from learners.sparsification.learner import WeightSparsification
from learners.sparsification.patterns import Pattern
from learners.sparsification.schedule import GradualSparsity, SparsitySchedule

__all__ = ["WeightSparsification", "GradualSparsity", "SparsitySchedule", "Pattern", "finalise"]
