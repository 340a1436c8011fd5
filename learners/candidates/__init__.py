"""Candidate networks: built, repaired and evaluated."""

from amc_compress.learners.candidates.learner import CandidateLearner, PartLearner, SearchSpace
from amc_compress.learners.candidates.options import CandidateOptions

__all__ = ["CandidateLearner", "PartLearner", "SearchSpace", "CandidateOptions"]
