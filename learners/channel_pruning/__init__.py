"""Channel pruning with least-squares reconstruction (He et al. 2017; AMC, He et al. 2018)."""

from amc_compress.learners.candidates.proxy import PROXIES
from amc_compress.learners.channel_pruning.criteria import CRITERIA, GroupContext
from amc_compress.learners.channel_pruning.group_lasso import GroupLassoPruning
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.channel_pruning.remastered import RemasteredPruning

__all__ = [
    "CRITERIA",
    "PROXIES",
    "ChannelPruning",
    "GroupContext",
    "GroupLassoPruning",
    "RemasteredPruning",
]
