"""A training that ends below its start gives the start back."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.small_training import FAST, Batches, batches, equal, network, weights
from torch import Tensor, nn

from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, train
from amc_env.errors import TrainingDivergedError

WORSE = TrainingConfig(epochs=2, learning_rate=30.0, precision="fp32", schedule="constant")


def ruined() -> Batches:
    """Labels that lead away from what a network knows."""
    return [(images, (labels + 1) % 3) for images, labels in batches()]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    model = network()
    train(model, batches(), batches(seed=1), FAST)
    return model


@pytest.mark.parametrize("change", [{}, {"ema_decay": 0.5}])
def test_a_training_that_ends_below_its_start_gives_the_start_back(
    trained: nn.Module, change: dict[str, Any], tmp_path: Path
) -> None:
    model, validation = copy.deepcopy(trained), batches(seed=1)
    start, config = evaluate(model, validation, precision="fp32"), replace(WORSE, **change)
    result = train(model, ruined(), validation, config, checkpoint_dir=tmp_path)
    assert max(record.validation_score for record in result.history) < start
    assert equal(weights(model), weights(trained))
    assert result.start_score == result.final_score == result.best_score == start
    assert result.best_epoch == -1
    again = copy.deepcopy(model)
    nn.init.zeros_(again[5].weight)  # a resumed training knows its start
    got = train(again, ruined(), validation, config, checkpoint_dir=tmp_path, resume=True)
    assert got == result
    assert equal(weights(again), weights(trained))


def test_a_start_that_was_begun_before_it_was_kept_is_the_network_that_is_given(
    trained: nn.Module, tmp_path: Path
) -> None:
    model, validation = copy.deepcopy(trained), batches(seed=1)
    train(model, ruined(), validation, WORSE, checkpoint_dir=tmp_path)
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    del state["start score"], state["start extra state"]
    state["best_epoch"] = 1
    torch.save(state, tmp_path / "last.pt")
    (tmp_path / "start.safetensors").unlink()
    model = copy.deepcopy(trained)
    result = train(model, ruined(), validation, WORSE, checkpoint_dir=tmp_path, resume=True)
    assert result.final_score >= evaluate(trained, validation, precision="fp32")


def test_a_training_that_diverges_after_it_fell_below_its_start_gives_the_start_back(
    trained: nn.Module,
) -> None:
    model = copy.deepcopy(trained)

    class Breaks(list[Any]):
        """Sound labels first, then images without numbers."""

        epoch = 0

        def set_epoch(self, epoch: int) -> None:
            self.epoch = epoch

        def __iter__(self) -> Iterator[Any]:
            for images, labels in super().__iter__():
                yield (images * math.nan if self.epoch else images), labels

    with pytest.raises(TrainingDivergedError):
        train(model, Breaks(ruined()), batches(seed=1), WORSE)
    assert equal(weights(model), weights(trained))


def test_validation_batches_that_come_once_are_kept() -> None:
    model, data = network(), batches(seed=1)
    result = train(model, batches(), iter(data), FAST)
    assert result.final_score == evaluate(model, data, precision="fp32")


def test_a_start_whose_metric_has_no_value_is_worse_than_any_epoch() -> None:
    model, data = network(), batches()

    def spread(outputs: Tensor, targets: Tensor) -> Tensor:  # 0 / 0 while all answers are alike
        return outputs.std() / outputs.std()

    nn.init.zeros_(model[5].weight)
    nn.init.zeros_(model[5].bias)
    task = make_task("classification", metric=spread, higher_is_better=True)
    result = train(model, data, data, FAST, task=task)
    assert result.start_score is None
    assert result.final_score == pytest.approx(1.0)
