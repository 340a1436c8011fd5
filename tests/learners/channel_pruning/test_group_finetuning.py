"""Group fine-tuning: stages that add up to the plan, whatever interrupts them."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.networks.torture_networks import ResNet20, shufflenet
from support.selection import quick
from torch import nn

from amc_compress.learners import ChannelPruning, GroupFinetuned, group_finetune
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_compress.learners.training.config import TrainingConfig
from amc_env import CompressionPlan
from amc_env.errors import PlanMismatchError, RunFolderError

CONFIG = TrainingConfig(learning_rate=0.02, precision="fp32")
IMAGES = make_data(64, 9)[0][0]


def maker(**options: Any) -> Callable[[nn.Module], ChannelPruning]:
    options = {"precision": "fp32", "round_to": 4, **options}

    def make(network: nn.Module) -> ChannelPruning:
        return ChannelPruning(network, EXAMPLE, make_data(64, 2), make_data(64, 3), **options)

    return make


def planned(model: nn.Module, ratio: float = 0.5) -> tuple[ChannelPruning, CompressionPlan]:
    learner = maker()(model)
    return learner, CompressionPlan({d.key: d.nearest(ratio) for d in learner.decisions})


def staged(model: nn.Module, plan: CompressionPlan, **options: Any) -> GroupFinetuned:
    options = {"groups": 2, "epochs_between": 1, "config": CONFIG, **options}
    make = options.pop("make", maker())
    return group_finetune(make, model, plan, make_data(96, 1), **options)


def same(a: GroupFinetuned, b: GroupFinetuned) -> bool:
    x, y = a.network.state_dict(), b.network.state_dict()
    return (
        x.keys() == y.keys()
        and all(torch.equal(x[key], y[key]) for key in x)
        and a.kept.keys() == b.kept.keys()
        and all(torch.equal(a.kept[name], b.kept[name]) for name in a.kept)
    )


@pytest.mark.parametrize("name", quick([*NETWORKS, "resnet20"], "residual"))
def test_kept_slices_the_original_to_the_same_shapes(name: str) -> None:
    model = ResNet20(width=8).eval() if name == "resnet20" else make_model(name).eval()
    before = copy.deepcopy(model.state_dict())
    learner, plan = planned(model)
    result = staged(model, plan, groups=3)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    for d in learner.decisions:
        assert len(result.kept[d.target]) == d.units(plan[d.key])
    rebuilt = learner.traced.slice(result.kept).eval()
    rebuilt.load_state_dict(result.network.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(rebuilt(IMAGES), result.network(IMAGES))


def test_stages_follow_the_order_of_the_network() -> None:
    model = make_model("depthwise").eval()
    learner, plan = planned(model)
    names = [d.target for d in learner.decisions]
    seen: list[list[int]] = []

    def make(network: nn.Module) -> ChannelPruning:
        made = maker()(network)
        seen.append([d.size for d in made.decisions])
        return made

    result = staged(model, plan, groups=9, make=make)
    assert result.stages == tuple((name,) for name in names)
    whole = [d.size for d in learner.decisions]
    half = [d.units(plan[d.key]) for d in learner.decisions]
    assert seen == [half[:i] + whole[i:] for i in range(len(whole))]
    assert staged(model, plan, groups=1).stages == (tuple(names),)


def test_one_stage_is_the_plain_cut_and_none_is_the_original() -> None:
    model = make_model("residual").eval()
    learner, plan = planned(model)
    one = staged(model, plan, groups=1).network(IMAGES)
    torch.testing.assert_close(one, learner.compress(plan)(IMAGES), rtol=0, atol=0)
    nothing = staged(model, CompressionPlan.full(learner.decisions))
    assert nothing.kept == {}
    assert nothing.stages == ()
    torch.testing.assert_close(nothing.network(IMAGES), model(IMAGES), rtol=0, atol=0)


def test_each_stage_starts_from_the_fine_tuned_network_of_the_last() -> None:
    model = make_model("plain").eval()
    _, plan = planned(model)
    networks: list[nn.Module] = []

    def make(network: nn.Module) -> ChannelPruning:
        networks.append(copy.deepcopy(network))
        return maker()(network)

    result = staged(model, plan, make=make, teacher=model)
    (first, *_), _ = result.stages
    stage = maker()(model)
    part = dict(CompressionPlan.full(stage.decisions))
    part |= {f"{name}:keep_ratio": plan[f"{name}:keep_ratio"] for name in result.stages[0]}
    expected = stage.compress(CompressionPlan(part))
    stage.finetune(expected, make_data(96, 1), epochs=1, config=CONFIG, teacher=model)
    for a, b in zip(networks[1].parameters(), expected.parameters(), strict=True):
        assert torch.equal(a, b)
    assert first == "0"


@pytest.mark.parametrize("survives", quick([0, 2, 5, 7, 12], 2, 7))
def test_killed_at_any_moment_it_continues_to_the_same_result(
    survives: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_model("plain").eval()
    _, plan = planned(model)
    options = {"groups": 3, "epochs_between": 2}
    straight = staged(model, plan, **options)
    real, done = os.replace, 0

    def replace_some(source: Path, target: Path) -> None:
        nonlocal done
        if done == survives:
            raise KeyboardInterrupt
        done += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    try:
        staged(model, plan, checkpoint_dir=tmp_path, **options)
        assert survives > 10  # 3 notes of what is kept, at most 2 files in each of 4 epochs
    except KeyboardInterrupt:
        pass
    monkeypatch.undo()
    torch.manual_seed(survives)
    assert same(straight, staged(model, plan, checkpoint_dir=tmp_path, resume=True, **options))


def test_a_folder_of_another_run_is_rejected(tmp_path: Path) -> None:
    model = make_model("plain").eval()
    _, plan = planned(model)
    staged(model, plan, checkpoint_dir=tmp_path)
    note = json.loads((tmp_path / "stage-1" / "kept.json").read_text())
    assert note["kept"].keys() == {"0", "3"}
    with pytest.raises(RunFolderError, match="already holds a stage"):
        staged(model, plan, checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match="kept other units of 0, 3"):
        staged(model, plan, checkpoint_dir=tmp_path, resume=True, make=maker(criterion="random"))
    (tmp_path / "stage-1" / "kept.json").write_text('{"0": [')
    with pytest.raises(RunFolderError, match="delete the folder"):
        staged(model, plan, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(RunFolderError, match="needs the checkpoint_dir"):
        staged(model, plan, resume=True)


def test_the_same_units_of_another_network_are_rejected(tmp_path: Path) -> None:
    """Magnitudes rank alike; the repair and the weights are others."""
    model = make_model("plain").eval()
    _, plan = planned(model)
    staged(model, plan, checkpoint_dir=tmp_path)

    def elsewhere(network: nn.Module) -> ChannelPruning:
        return ChannelPruning(
            network, EXAMPLE, make_data(64, 77), make_data(64, 3), precision="fp32", round_to=4
        )

    kept = [make(model).kept_units(plan) for make in (maker(), elsewhere)]
    assert all(torch.equal(kept[0][name], kept[1][name]) for name in kept[0])
    with pytest.raises(RunFolderError, match="other weights when it was cut"):
        staged(model, plan, checkpoint_dir=tmp_path, resume=True, make=elsewhere)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other[8].bias.add_(1.0)
    with pytest.raises(RunFolderError, match="other weights when it was cut"):
        staged(other, plan, checkpoint_dir=tmp_path, resume=True)
    staged(model, plan, checkpoint_dir=tmp_path, resume=True)


def test_bad_options_and_plans_are_rejected() -> None:
    model = make_model("plain").eval()
    _, plan = planned(model)
    other = "to be a whole number"
    for groups, expected in ((0, ">= 1, a whole number"), (1.5, other), (True, other)):
        with pytest.raises(ValueError, match=f"groups {expected}, got {groups}"):
            staged(model, plan, groups=groups)
    for epochs, expected in ((-1, ">= 0, a whole number"), (0.5, other)):
        with pytest.raises(ValueError, match=f"epochs_between {expected}, got {epochs}"):
            staged(model, plan, epochs_between=epochs)
    with pytest.raises(PlanMismatchError):
        staged(model, CompressionPlan({"x:keep_ratio": 0.5}))


@pytest.mark.slow
def test_a_network_that_can_be_cut_only_once_is_rejected_by_name() -> None:
    """A channel shuffle gets a forward with the indices of the first cut."""
    torch.manual_seed(0)
    model = shufflenet().eval()
    _, plan = planned(model)
    with pytest.raises(PlanMismatchError, match=r"channel group '.*' of \d+ units .* one stage"):
        staged(model, plan, epochs_between=0)
    assert staged(model, plan, groups=1).stages
