"""Discrimination-aware channel pruning (Zhuang et al. 2018)."""

from amc_compress.learners.channel_pruning.discrimination.learner import DiscriminationAwarePruning

__all__ = ["DiscriminationAwarePruning"]
