"""The training loop, its hyperparameters, hooks and checkpoints."""

from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.hooks import TrainingHook
from amc_compress.learners.training.loop import TrainingResult, evaluate, train

__all__ = ["TrainingConfig", "TrainingHook", "TrainingResult", "evaluate", "train"]
