"""Channel pruning with least-squares reconstruction (He et al. 2017; AMC, He et al. 2018)."""

from learners.channel_pruning.criteria import CRITERIA, GroupContext
from learners.channel_pruning.group_lasso import GroupLassoPruning
from learners.channel_pruning.learner import ChannelPruning
from learners.channel_pruning.remastered import RemasteredPruning
from learners.proxy import PROXIES

__all__ = [
    "CRITERIA",
    "PROXIES",
    "ChannelPruning",
    "GroupContext",
    "GroupLassoPruning",
    "RemasteredPruning",
]
