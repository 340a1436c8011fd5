"""Sparse training: what will be removed fades, so that cutting it changes little."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from support.once import copies
from torch import nn

from amc_compress.learners import ChannelPruning, cut_after, sparse_training
from amc_compress.learners.channel_pruning.gradual.regularisers import unit_norms
from amc_compress.learners.channel_pruning.gradual.sparse_training import faded, units_to_remove
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.hooks import TrainingHook
from amc_compress.learners.training.loop import train
from amc_env import CompressionPlan
from amc_env.errors import PlanMismatchError

CONFIG = TrainingConfig(learning_rate=0.02, precision="fp32")
IMAGES = make_data(64, 9)[0][0]


@copies
def prepared(name: str, **options: Any) -> tuple[ChannelPruning, CompressionPlan]:
    learner = ChannelPruning(
        make_model(name).eval(), EXAMPLE, make_data(96, 2), make_data(96, 3),
        **{"precision": "fp32", "round_to": 4, **options},
    )  # fmt: skip
    return learner, CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})


def change(before: nn.Module, after: nn.Module) -> float:
    """Relative to the outputs before."""
    with torch.no_grad():
        expected = before(IMAGES)
        return float((after(IMAGES) - expected).norm() / expected.norm())


class Watch(TrainingHook):
    """Notes the norms of the units to be removed after each epoch."""

    name = "watch"

    def __init__(self, learner: ChannelPruning, plan: CompressionPlan, steps: int) -> None:
        self.learner, self.removed, self.steps = learner, units_to_remove(learner, plan), steps
        self.rows: list[list[float]] = []

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        self.model = model
        self.note()

    def after_step(self, step: int) -> None:
        if (step + 1) % self.steps == 0:
            self.note()

    def note(self) -> None:
        norms = (unit_norms(self.learner.traced, self.model, g)[u] for g, u in self.removed.items())
        self.rows.append([float(n.mean()) for n in norms])


@pytest.mark.parametrize("name", NETWORKS)
def test_cutting_what_has_faded_changes_little(name: str) -> None:
    learner, plan = prepared(name)
    data = make_data(256, 1)
    watch = Watch(learner, plan, len(data))
    before = copy.deepcopy(learner.original.state_dict())
    network = sparse_training(learner, plan, data, epochs=8, config=CONFIG, hooks=[watch])
    for a, b in zip(before.values(), learner.original.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    for row, later in zip(watch.rows, watch.rows[1:], strict=False):
        assert all(b < a for a, b in zip(row, later, strict=True))
    kept = learner.kept_units(plan)
    slices = learner.traced.slice(kept, network), learner.traced.slice(kept)
    assert change(network, slices[0]) < 0.2 * change(learner.original, slices[1])
    cut = cut_after(learner, network, plan)
    shapes = {key: value.shape for key, value in learner.compress(plan).state_dict().items()}
    assert {key: value.shape for key, value in cut.state_dict().items()} == shapes
    assert learner.score(cut) > 0.9
    assert not network.training
    assert not cut.training


def test_the_group_lasso_fades_the_same_units() -> None:
    learner, plan = prepared("residual")
    network = sparse_training(
        learner, plan, make_data(256, 1), regulariser="group-lasso", strength=0.02, epochs=8,
        config=CONFIG,
    )  # fmt: skip
    for group, removed in units_to_remove(learner, plan).items():
        before = unit_norms(learner.traced, learner.original, group)
        after = unit_norms(learner.traced, network, group)
        stays = learner.kept_units(plan)[group]
        assert sorted([*removed.tolist(), *stays.tolist()]) == list(range(len(before)))
        assert (after[removed] < 0.2 * before[removed]).all()
        assert after[stays].mean() > 0.5 * before[stays].mean()


def test_the_best_epoch_is_not_the_one_that_faded_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the uncut network: at this rate every epoch costs accuracy, and fades some more."""
    learner, plan = prepared("residual")
    removed, data = units_to_remove(learner, plan), make_data(256, 1)
    config = TrainingConfig(learning_rate=0.02, schedule="constant", precision="fp32")
    falling = iter([0.9, 0.8, 0.7, 0.7])
    monkeypatch.setattr(
        "amc_compress.learners.training.loop.measured_by_all",
        lambda *_, **__: {"accuracy": next(falling)},
    )
    watch = Watch(learner, plan, len(data))
    with pytest.warns(UserWarning, match=r"one group have \d+% of their norm left"):
        network = sparse_training(
            learner, plan, data, regulariser="group-lasso", epochs=3, config=config, hooks=[watch]
        )
    norms = [float(unit_norms(learner.traced, network, g)[u].mean()) for g, u in removed.items()]
    assert norms == pytest.approx(watch.rows[-1])
    assert all(a < b for a, b in zip(norms, watch.rows[1], strict=True))


def test_the_share_left_is_that_of_the_group_that_kept_most() -> None:
    learner, plan = prepared("plain")
    removed = units_to_remove(learner, plan)
    network = copy.deepcopy(learner.original)
    assert faded(learner, network, removed) == pytest.approx(1.0)
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(0.25)
        network[0].weight[learner.kept_units(plan)["0"]] = 9.0  # of no interest
        assert faded(learner, network, {"0": removed["0"]}) == pytest.approx(0.25)
        network[3].weight[removed["3"]] *= 3.0
    own = [
        float(n.norm())
        for n in (
            unit_norms(learner.traced, net, "3")[removed["3"]]
            for net in (network, learner.original)
        )
    ]
    assert own[0] / own[1] > 0.3
    assert faded(learner, network, removed) == pytest.approx(own[0] / own[1])


def test_the_cut_takes_the_trained_weights_of_the_units_that_stay() -> None:
    learner, plan = prepared("plain")
    network = copy.deepcopy(learner.original)
    with torch.no_grad():
        for index, p in enumerate(network.parameters()):
            p.add_(0.01 * (index + 1))
    cut = cut_after(learner, network, plan)
    kept = learner.kept_units(plan)
    expected = network[3].weight[kept["3"]][:, kept["0"]]
    assert torch.equal(cut[3].weight, expected)
    # The original's own slice is what it was.
    own = learner.original[3].weight[kept["3"]][:, kept["0"]]
    assert torch.equal(learner.traced.slice(kept)[3].weight, own)


@pytest.mark.filterwarnings("ignore:Expected the channels")  # three epochs are too few
def test_a_resumed_sparse_training_has_the_same_bits(tmp_path: Path) -> None:
    learner, plan = prepared("plain")
    options: dict[str, Any] = {"epochs": 3, "config": CONFIG, "teacher": learner.original}
    straight = sparse_training(learner, plan, make_data(128, 1), **options)

    class Stop(TrainingHook):
        name = "stop"

        def __init__(self, at: int) -> None:
            self.at = at

        def after_step(self, step: int) -> None:
            if step == self.at:
                raise KeyboardInterrupt

    options["checkpoint_dir"] = tmp_path
    with pytest.raises(KeyboardInterrupt):
        sparse_training(learner, plan, make_data(128, 1), hooks=[Stop(5)], **options)
    resumed = sparse_training(
        learner, plan, make_data(128, 1), hooks=[Stop(99)], resume=True, **options
    )
    for a, b in zip(straight.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_cannot_be_done_is_rejected() -> None:
    learner, plan = prepared("plain")
    data = make_data(32, 1)
    with pytest.raises(ValueError, match="Unknown regulariser 'l3'"):
        sparse_training(learner, plan, data, regulariser="l3", epochs=1)
    with pytest.raises(ValueError, match="strength above 0"):
        sparse_training(learner, plan, data, strength=0.0, epochs=1)
    with pytest.raises(PlanMismatchError, match="nothing would fade"):
        sparse_training(learner, CompressionPlan.full(learner.decisions), data, epochs=1)
    with pytest.raises(ValueError, match=r"its 0\.bias has \[8\] instead of \[16\]: pass an uncut"):
        cut_after(learner, learner.compress(plan), plan)
    with pytest.raises(ValueError, match=r"its 0\.bias has none instead of \[16\]"):
        learner.traced.slice({}, nn.Linear(2, 2))


@pytest.mark.filterwarnings("ignore:Expected the channels")  # six steps are too few
def test_without_its_penalty_it_is_the_one_training_loop() -> None:
    learner, plan = prepared("plain")
    data = make_data(192, 1)
    config = TrainingConfig(epochs=1, learning_rate=0.02, precision="fp32")

    class Compare(TrainingHook):
        """Notes the weights after the 5 steps before the first raise, and after all 6."""

        name = "compare"

        def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
            self.model, self.seen = model, dict[int, list[torch.Tensor]]()

        def after_step(self, step: int) -> None:
            self.seen[step] = [p.detach().clone() for p in self.model.parameters()]

    alone, penalised = Compare(), Compare()
    train(copy.deepcopy(learner.original), data, learner.validation, config, hooks=[alone])
    sparse_training(learner, plan, data, epochs=1, config=config, hooks=[penalised])
    for a, b in zip(alone.seen[4], penalised.seen[4], strict=True):
        assert torch.equal(a, b)
    assert any(not torch.equal(a, b) for a, b in zip(alone.seen[5], penalised.seen[5], strict=True))


def test_a_training_that_ends_before_the_penalty_begins_is_rejected(tmp_path: Path) -> None:
    learner, plan = prepared("plain")
    with pytest.raises(ValueError, match="3 steps end before it is raised the first time"):
        sparse_training(
            learner, plan, make_data(96, 1), epochs=1, config=CONFIG, checkpoint_dir=tmp_path
        )
    assert not list(tmp_path.iterdir())
