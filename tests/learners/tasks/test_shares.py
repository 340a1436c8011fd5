"""Shares of classes in place of labels, as mixup makes them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from amc_compress.learners.tasks.classification import CLASSIFICATION, is_shares
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train
from amc_env.errors import InputDataError

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = torch.randn(24, 1, 4, 4, generator=GENERATOR)
LABELS = torch.arange(24) % 3
SHARES = 0.7 * functional.one_hot(LABELS, 3).float() + 0.3 / 3


def test_the_loss_is_the_mean_of_those_of_the_classes() -> None:
    logits = torch.randn(24, 3, generator=GENERATOR)
    each = torch.stack(
        [
            functional.cross_entropy(logits, torch.full((24,), k), reduction="none")
            for k in range(3)
        ],
        dim=1,
    )
    expected = (SHARES * each).sum(1).mean()
    torch.testing.assert_close(CLASSIFICATION.loss(logits, SHARES), expected)
    meter, plain = CLASSIFICATION.meter(), CLASSIFICATION.meter()
    meter.update(logits, SHARES)
    plain.update(logits, LABELS)
    assert meter.compute() == plain.compute()


def test_a_network_learns_from_them_and_other_numbers_are_rejected(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    config = TrainingConfig(epochs=1, precision="fp32", label_smoothing=0.1)
    train(net, [(IMAGES, SHARES)], [(IMAGES, LABELS)], config)
    with pytest.raises(InputDataError, match="Expected the shares of 3 classes"):
        train(net, [(IMAGES, SHARES.repeat(1, 2) / 2)], [(IMAGES, LABELS)], config)
    for wrong in (SHARES * 2, SHARES - 1 / 3, SHARES.long(), SHARES[:, :1]):
        assert not is_shares(wrong)
        with pytest.raises(InputDataError, match="one integer label per"):
            train(net, [(IMAGES, wrong)], [(IMAGES, LABELS)], config)
