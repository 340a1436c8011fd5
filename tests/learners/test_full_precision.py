"""The learner that compresses nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.full_precision import FullPrecision
from amc_compress.learners.training.config import TrainingConfig
from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan


def data(seed: int) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(64, 1, 4, 4, generator=generator)
    labels = (images[:, 0, 0, 0] > 0).long()
    return list(zip(images.split(16), labels.split(16), strict=True))


@pytest.fixture
def learner() -> FullPrecision:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 2)
        )
    return FullPrecision(model, torch.zeros(1, 1, 4, 4), data(1), precision="fp32")


def test_training_raises_what_evaluate_says(learner: FullPrecision) -> None:
    before = learner.evaluate(CompressionPlan({}))
    assert before == learner.original_accuracy
    config = TrainingConfig(learning_rate=0.05, precision="fp32")
    result = learner.finetune(learner.model, data(0), epochs=8, config=config)
    assert len(result.history) == 8
    assert learner.evaluate(CompressionPlan({})) == result.best_accuracy > 0.8


def test_the_compressed_network_is_an_independent_copy(learner: FullPrecision) -> None:
    copied = learner.compress(CompressionPlan({}))
    x = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    expected = learner.model.eval()(x)
    assert torch.equal(copied(x), expected)
    nn.init.zeros_(copied[0].weight)
    assert torch.equal(learner.model(x), expected)


def test_it_decides_nothing(learner: FullPrecision) -> None:
    assert learner.decisions == ()
    for call in (learner.evaluate, learner.compress):
        with pytest.raises(PlanMismatchError, match="expected an empty plan"):
            call(CompressionPlan({"conv:keep_ratio": 0.5}))
