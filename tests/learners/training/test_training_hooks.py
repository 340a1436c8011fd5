"""Training hooks: when they are called, what they add, and that a resumed training keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.hooks import TrainingHook
from amc_compress.learners.training.loop import train
from amc_env.errors import InputDataError, RunFolderError

CONFIG = TrainingConfig(epochs=4, learning_rate=0.05, precision="fp32", weight_decay=0.0)
STEPS = 3


class Data:
    """Three batches, shuffled by the epoch; raises in the middle of one."""

    def __init__(self, stop_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(60, 1, 4, 4, generator=generator)
        self.labels = (self.images.mean((1, 2, 3)) > 0).long()
        self.epoch = 0
        self.stop_at = stop_at

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return STEPS

    def __iter__(self) -> Any:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(self.epoch))
        for index, part in enumerate(order.split(20)):
            if self.epoch == self.stop_at and index == 1:
                raise KeyboardInterrupt
            yield self.images[part], self.labels[part]


def network() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)
        )


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


class Spy(TrainingHook):
    name = "spy"

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        self.calls.append(("start", teacher is not None, total_steps))

    def before_step(self, step: int) -> None:
        self.calls.append(("before", step))

    def loss(self) -> Tensor | None:
        self.calls.append("loss")
        return None

    def after_step(self, step: int) -> None:
        self.calls.append(("after", step))

    def finish(self) -> None:
        self.calls.append("finish")


class Drift(TrainingHook):
    """Pulls the weights to their own running mean: a loss with a state of its own."""

    name = "drift"

    def __init__(self, strength: float = 0.5) -> None:
        self.strength = strength

    def identity(self) -> Mapping[str, Any]:
        return {"strength": self.strength}

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        self.weight = model.get_parameter("0.weight")
        self.mean = self.weight.detach().clone()
        self.losses = 0

    def loss(self) -> Tensor:
        self.losses += 1
        return self.strength * (self.weight - self.mean).square().sum()

    def after_step(self, step: int) -> None:
        self.mean.lerp_(self.weight.detach(), 0.1)

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "losses": self.losses}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.mean.copy_(state["mean"])
        self.losses = state["losses"]


class Decay(TrainingHook):
    """Weight decay as a term of the loss."""

    name = "decay"

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        self.weights = [p for p in model.parameters() if p.ndim > 1]

    def loss(self) -> Tensor:
        return torch.stack([0.5 * 0.1 * w.square().sum() for w in self.weights]).sum()


class ReadyIn(TrainingHook):
    name = "ready"

    def __init__(self, *epochs: int) -> None:
        self.epochs = epochs

    def is_ready(self, step: int) -> bool:
        return step // STEPS - 1 in self.epochs


def test_hooks_are_called_around_every_step_and_once_at_the_ends() -> None:
    spy = Spy()
    train(network(), Data(), Data(), replace(CONFIG, epochs=2), teacher=network(), hooks=[spy])
    steps = [call for i in range(2 * STEPS) for call in (("before", i), "loss", ("after", i))]
    assert spy.calls == [("start", True, 2 * STEPS), *steps, "finish"]


def test_what_a_hook_adds_to_the_loss_is_trained_on() -> None:
    ours, theirs = network(), network()
    result = train(ours, Data(), Data(), CONFIG, hooks=[Decay()])
    train(theirs, Data(), Data(), replace(CONFIG, weight_decay=0.1))
    plain = train(network(), Data(), Data(), CONFIG)
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-4)
    assert result.history[0].train_loss > plain.history[0].train_loss + 0.01


@pytest.mark.parametrize("stop_at", [0, 1, 3])
def test_a_resumed_training_with_hooks_ends_with_the_same_bits(
    tmp_path: Path, stop_at: int
) -> None:
    straight, resumed = network(), network()
    first, second = Drift(), Drift()
    expected = train(straight, Data(), Data(), CONFIG, hooks=[first])
    with pytest.raises(KeyboardInterrupt):
        train(
            network(), Data(stop_at), Data(), CONFIG, hooks=[Drift()], checkpoint_dir=tmp_path
        )  # fmt: skip
    got = train(
        resumed, Data(), Data(), CONFIG, hooks=[second], checkpoint_dir=tmp_path, resume=True
    )
    assert same(straight, resumed)
    assert torch.equal(first.mean, second.mean)
    assert first.losses == second.losses == 4 * STEPS
    assert [r.train_loss for r in got.history] == [r.train_loss for r in expected.history]
    assert not same(straight, trained_without())


def trained_without() -> nn.Module:
    model = network()
    train(model, Data(), Data(), CONFIG)
    return model


@pytest.mark.parametrize("hooks", [[], [Drift(0.25)], [Spy()]])
def test_resuming_with_other_hooks_is_rejected(tmp_path: Path, hooks: list[TrainingHook]) -> None:
    train(network(), Data(), Data(), CONFIG, hooks=[Drift()], checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match=r"hooks was \{'drift': \{'strength': 0\.5\}\}"):
        train(network(), Data(), Data(), CONFIG, hooks=hooks, checkpoint_dir=tmp_path, resume=True)


def test_numbers_of_numpy_make_a_run_that_can_be_resumed(tmp_path: Path) -> None:
    rates = np.linspace(0.0, 0.02, 3)
    config = replace(CONFIG, learning_rate=rates[1], seed=np.int64(3), nesterov=np.bool_(True))
    assert type(config.learning_rate) is float
    straight = network()
    train(straight, Data(), Data(), config, hooks=[Drift(np.float32(0.5))])
    with pytest.raises(KeyboardInterrupt):
        train(
            network(), Data(1), Data(), config,
            hooks=[Drift(np.float32(0.5))], checkpoint_dir=tmp_path,
        )  # fmt: skip
    resumed = network()
    config = replace(CONFIG, learning_rate=0.01, seed=3)
    train(resumed, Data(), Data(), config, hooks=[Drift()], checkpoint_dir=tmp_path, resume=True)
    assert same(straight, resumed)


def test_an_identity_that_no_checkpoint_holds_is_rejected_before_the_first_step() -> None:
    spy = Spy()
    with pytest.raises(ValueError, match="identity of the hook 'drift', got Tensor"):
        train(network(), Data(), Data(), CONFIG, hooks=[spy, Drift(torch.ones(1))])
    assert spy.calls == [("start", False, 4 * STEPS), "finish"]


def test_what_is_no_hook_and_no_teacher_is_rejected() -> None:
    model = network()
    with pytest.raises(ValueError, match=r"each a TrainingHook\), got \[1\]"):
        train(model, Data(), Data(), CONFIG, hooks=[1])
    with pytest.raises(ValueError, match="teacher to be a Module or None, got 'resnet20"):
        train(model, Data(), Data(), CONFIG, teacher="resnet20.safetensors")
    assert model[0].weight.is_contiguous()


def test_two_hooks_of_one_name_are_rejected() -> None:
    with pytest.raises(ValueError, match="different names, got drift, spy, drift"):
        train(network(), Data(), Data(), CONFIG, hooks=[Drift(), Spy(), Drift()])


@pytest.mark.parametrize(
    ("ready", "among"), [((0,), [0]), ((1, 2), [1, 2]), ((3,), [3]), ((), [0, 1, 2, 3])]
)
def test_an_epoch_that_is_not_ready_never_wins(ready: tuple[int, ...], among: list[int]) -> None:
    model = network()
    result = train(model, Data(), Data(), CONFIG, hooks=[ReadyIn(*ready)])
    accuracies = [record.validation_score for record in result.history]
    assert max(accuracies) > accuracies[0]  # else the first case would say nothing
    assert result.best_epoch == max(among, key=lambda epoch: (accuracies[epoch], epoch))
    assert result.best_score == accuracies[result.best_epoch]
    assert [record.is_ready for record in result.history] == [i in ready for i in range(4)]


def test_a_network_that_was_ready_survives_resuming(tmp_path: Path) -> None:
    straight, resumed = network(), network()
    train(straight, Data(), Data(), CONFIG, hooks=[ReadyIn(0)])
    with pytest.raises(KeyboardInterrupt):
        train(
            network(), Data(2), Data(), CONFIG, hooks=[ReadyIn(0)], checkpoint_dir=tmp_path
        )  # fmt: skip
    result = train(
        resumed, Data(), Data(), CONFIG, hooks=[ReadyIn(0)], checkpoint_dir=tmp_path, resume=True
    )
    assert result.best_epoch == 0
    assert same(straight, resumed)


class Broken(TrainingHook):
    name = "broken"

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        raise InputDataError("no such layer")


class Remembering(nn.Sequential):
    """Has extra state that is no tensor."""

    extra: Any = "first"

    def get_extra_state(self) -> Any:
        return {"text": self.extra}

    def set_extra_state(self, state: Any) -> None:
        self.extra = state["text"]


def test_extra_state_of_any_kind_is_kept_and_resumed(tmp_path: Path) -> None:
    straight, resumed = Remembering(*network()), Remembering(*network())
    train(straight, Data(), Data(), CONFIG)
    stopped = Remembering(*network())
    with pytest.raises(KeyboardInterrupt):
        train(stopped, Data(2), Data(), CONFIG, checkpoint_dir=tmp_path)
    resumed.extra = "other"
    train(resumed, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    assert all(
        torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True)
    )
    assert resumed.extra == "first"
    stopped.extra = CONFIG  # no checkpoint can be read that has this in it
    with pytest.raises(InputDataError, match=r"'_extra_state', got dict, .* without a checkpoint"):
        train(stopped, Data(), Data(), CONFIG, checkpoint_dir=tmp_path / "other")
    train(stopped, Data(), Data(), CONFIG)


def test_hooks_finish_whatever_ended_the_training(tmp_path: Path) -> None:
    spies = [Spy() for _ in range(3)]
    with pytest.raises(KeyboardInterrupt):
        train(network(), Data(1), Data(), CONFIG, hooks=[spies[0]], checkpoint_dir=tmp_path)
    with pytest.raises(InputDataError, match="no such layer"):
        train(network(), Data(), Data(), CONFIG, hooks=[spies[1], Broken()])
    with pytest.raises(RunFolderError, match="belongs to another run"):
        train(
            network(), Data(), Data(), replace(CONFIG, epochs=9),
            hooks=[spies[2]], checkpoint_dir=tmp_path, resume=True,
        )  # fmt: skip
    assert [spy.calls[-1] for spy in spies] == ["finish"] * 3
    assert [spy.calls.count("finish") for spy in spies] == [1, 1, 1]
