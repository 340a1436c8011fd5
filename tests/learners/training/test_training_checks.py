"""What cannot be trained is rejected before or in the first step, in one sentence."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import FAST, batches, network
from torch import nn

from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, train
from amc_env.errors import InputDataError, RunFolderError, TrainingDivergedError


def test_a_learning_rate_far_too_high_is_named() -> None:
    config = TrainingConfig(epochs=30, learning_rate=1e30, precision="fp32", schedule="constant")
    with pytest.raises(TrainingDivergedError, match="lower the learning rate"):
        train(network(), batches(), batches(seed=1), config)


@pytest.mark.parametrize(("label", "got"), [(3, 3), (-1, -1), (255, 255)])
def test_labels_outside_the_classes_are_rejected(label: int, got: int) -> None:
    data = batches()
    data[1][1][4] = label
    with pytest.raises(InputDataError, match=rf"must lie in 0\.\.2, .*got {got}:"):
        evaluate(network(), data)
    with pytest.raises(InputDataError, match=rf"must lie in 0\.\.2, .*got {got}:"):
        train(network(), data, batches(), FAST)


@pytest.mark.parametrize("shape", [(4, 3, 6, 6), (4, 1, 6), (4, 0, 6, 6)])
def test_images_that_do_not_fit_are_rejected(shape: tuple[int, ...]) -> None:
    data = [(torch.zeros(shape), torch.zeros(4, dtype=torch.int64))]
    with pytest.raises(InputDataError, match="cannot take images of shape"):
        evaluate(network(), data)


def test_batches_of_another_kind_are_rejected() -> None:
    images, labels = batches()[0]
    for bad in (labels[:5], labels.float(), labels[:, None]):
        with pytest.raises(InputDataError, match="one integer label per image"):
            evaluate(network(), [(images, bad)])
    with pytest.raises(InputDataError, match="tensors, got Tensor and list"):
        evaluate(network(), [(images, labels.tolist())])  # type: ignore[list-item]
    with pytest.raises(InputDataError, match="logits of shape"):
        evaluate(nn.Identity(), [(images, labels)])
    with pytest.raises(InputDataError, match="at least one image"):
        evaluate(network(), [])
    with pytest.raises(InputDataError, match="a length"):
        train(network(), iter(batches()), batches(), FAST)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0), ("optimizer", "adam"), ("learning_rate", 0.0), ("learning_rate", math.nan),
        ("momentum", 1.0), ("weight_decay", -1e-4), ("schedule", "linear"), ("warmup_epochs", 30),
        ("label_smoothing", 1.0), ("ema_decay", 1.0), ("precision", "fp8"),
        ("gradient_clip", 0.0), ("distillation_temperature", 0.0), ("distillation_weight", 1.5),
        ("learning_rate", math.inf),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_rejected_by_name(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"{field} (must|to) be"):
        TrainingConfig(**{field: value})


def test_a_teacher_of_other_classes_is_rejected() -> None:
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 5))
    with pytest.raises(InputDataError, match="same classes in both"):
        train(network(), batches(), batches(), FAST, teacher=other)


def test_resuming_needs_a_folder_and_a_used_folder_needs_resuming(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="needs the checkpoint_dir"):
        train(network(), batches(), batches(), FAST, resume=True)
    train(network(), batches(), batches(), FAST, checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match="already holds a checkpoint"):
        train(network(), batches(), batches(), FAST, checkpoint_dir=tmp_path)
