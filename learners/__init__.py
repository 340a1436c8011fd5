"""Learners: how a plan becomes a smaller network, and how networks are trained."""

from learners.base import Learner
from learners.channel_pruning import ChannelPruning, GroupLassoPruning, RemasteredPruning
from learners.channel_pruning.discrimination import DiscriminationAwarePruning
from learners.deep_compression import compress_deeply, deep_compression
from learners.feature_matching import FeatureMatching
from learners.group_finetuning import GroupFinetuned, group_finetune
from learners.joint import JointCompression, joint_compression
from learners.quantization import UniformQuantization
from learners.quantization.codebook import CodebookQuantization
from learners.regularisers import GroupLassoPenalty, GrowingRegularisation
from learners.sparse_training import cut_after, sparse_training
from learners.sparsification import WeightSparsification
from learners.tracing import TracedModel, trace
from learners.training import TrainingConfig, TrainingResult, evaluate, train

__all__ = [
    "Learner",
    "ChannelPruning",
    "GroupLassoPruning",
    "RemasteredPruning",
    "DiscriminationAwarePruning",
    "WeightSparsification",
    "UniformQuantization",
    "CodebookQuantization",
    "JointCompression",
    "joint_compression",
    "deep_compression",
    "compress_deeply",
    "TracedModel",
    "trace",
    "TrainingConfig",
    "TrainingResult",
    "evaluate",
    "train",
    "FeatureMatching",
    "GroupLassoPenalty",
    "GrowingRegularisation",
    "sparse_training",
    "cut_after",
    "GroupFinetuned",
    "group_finetune",
]
