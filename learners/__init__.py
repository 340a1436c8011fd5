"""Learners: how a plan becomes a smaller network, and how networks are trained."""

from learners.base import Learner
from learners.channel_pruning import ChannelPruning
from learners.joint import JointCompression, joint_compression
from learners.quantization import UniformQuantization
from learners.quantization.codebook import CodebookQuantization
from learners.tracing import TracedModel, trace
from learners.training import TrainingConfig, TrainingResult, evaluate, train

__all__ = [
    "Learner",
    "ChannelPruning",
    "UniformQuantization",
    "CodebookQuantization",
    "JointCompression",
    "joint_compression",
    "TracedModel",
    "trace",
    "TrainingConfig",
    "TrainingResult",
    "evaluate",
    "train",
]
