"""Candidate networks: built, repaired and evaluated."""

from amc_compress.learners.candidates.learner import CandidateLearner, PartLearner
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.space import SearchSpace

__all__ = ["CandidateLearner", "PartLearner", "SearchSpace", "CandidateOptions"]
