"""Deep Compression's order of work: train the sparse network, quantize it, train that."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from amc_compress.config.learner_specs.base import FLOAT_TRAINING
from amc_compress.learners.joint.deep import DeepStage, compress_deeply
from amc_compress.learners.joint.learner import JointCompression
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.runs.task import Task


@dataclass(frozen=True)
class DeeplyTrained:
    """Result of the fine-tuning of a deep compression.

    Args:
        network: Sparse and quantized.
        seconds: Of the process that finished it.
        original: Validation score of the original network.
        before: Validation score of the sparse network before any training.
        after: Validation score at the end.
        stages: Name, validation score and bytes of the packed file after every step.
    """

    network: nn.Module
    seconds: float
    original: float
    before: float
    after: float
    stages: Sequence[dict[str, Any]]


def finetune_deeply(task: Task, settings: TrainingConfig, checkpoints: Path) -> DeeplyTrained:
    """Carries out the plan of a run of ``--learner deep``.

    Args:
        task: The run, searched.
        settings: Of the training of the codebooks; that of the sparse network takes the rate and
            the decay of float networks.
        checkpoints: Folder that an interrupted training is continued from.

    Raises:
        TypeError: If the run's learner is another one.
    """
    learner = task.learner
    if not isinstance(learner, JointCompression):
        raise TypeError(f"Expected a deep compression, got {type(learner).__name__}.")
    started = time.perf_counter()
    result = compress_deeply(
        learner,
        task.folder.read_plan(),
        task.data.train,
        retraining=replace(
            settings,
            epochs=task.config.retraining_epochs,
            gradient_clip=None,
            **FLOAT_TRAINING[settings.optimizer],
        ),
        finetuning=settings,
        mode=task.config.codebook_mode,
        teacher=task.teacher,
        folder=checkpoints,
        resume=True,
        progress=task.progress,
    )
    return DeeplyTrained(
        network=result.network,
        seconds=time.perf_counter() - started,
        original=_score_of("original", result.stages),
        before=_score_of("pruned", result.stages),
        after=result.stages[-1].score,
        stages=[vars(stage) for stage in result.stages],
    )


def _score_of(name: str, stages: Sequence[DeepStage]) -> float:
    return next(stage.score for stage in stages if stage.name == name)
