"""Learners: how a plan becomes a smaller network, and how networks are trained."""

from amc_compress.learners.base import Learner
from amc_compress.learners.channel_pruning import (
    ChannelPruning,
    GroupLassoPruning,
    RemasteredPruning,
)
from amc_compress.learners.channel_pruning.discrimination.learner import DiscriminationAwarePruning
from amc_compress.learners.channel_pruning.gradual.group_finetuning import (
    GroupFinetuned,
    group_finetune,
)
from amc_compress.learners.channel_pruning.gradual.regularisers import (
    GroupLassoPenalty,
    GrowingRegularisation,
)
from amc_compress.learners.channel_pruning.gradual.sparse_training import cut_after, sparse_training
from amc_compress.learners.joint.deep import compress_deeply, deep_compression
from amc_compress.learners.joint.prepare import JointCompression, joint_compression
from amc_compress.learners.quantization import UniformQuantization
from amc_compress.learners.quantization.codebook.learner import CodebookQuantization
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.feature_matching import FeatureMatching
from amc_compress.learners.training.loop import TrainingResult, evaluate, train

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
