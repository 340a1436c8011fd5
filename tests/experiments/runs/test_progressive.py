"""Progressive compression: bounds of stages, composition with the original, interruption."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support.runs.command_line import WEIGHTS
from support.runs.killed import Killed, dies_after
from torch import nn

from amc_compress.cli import run
from amc_compress.config.run_config import RunConfig
from amc_compress.config.stage_budgets import stage_budgets
from amc_compress.data import DataSplits
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.models import load_weights
from amc_compress.runs.networks import build_original, load_compressed
from amc_compress.runs.task import facts_of, load_splits
from amc_compress.stages.composition import Composition
from amc_compress.stages.progressive import StageFacts, progressive_compression
from amc_env import Budget, CompressionPlan, PlanMismatchError, RunFolderError

CONFIG = RunConfig(round_to=4, n_validation=60, precision="fp32", criterion="l2", min_ratio=0.3)
SMALL = ["--weights", WEIGHTS, "--agent", "random", "--evaluations", "3", "--epochs", "1",
         "--stage-epochs", "1", "--n-validation", "100", "--precision", "fp32", "--quiet",
         "--no-export", "--round-to", "2", "--budget", "macs=0.4"]  # fmt: skip


# ---- bounds


def test_bounds_fall_in_equal_ratios_and_keep_the_lower_ones() -> None:
    budgets = stage_budgets(Budget(macs=(0.1, 0.125), bytes=0.064), 3)
    assert [b.bounds["macs"] for b in budgets] == [(0.1, 0.5), (0.1, 0.25), (0.1, 0.125)]
    assert [b.bounds["bytes"][1] for b in budgets] == pytest.approx([0.4, 0.16, 0.064])
    assert stage_budgets(Budget(macs=0.5), 1) == [Budget(macs=0.5)]


@pytest.mark.parametrize("shares", [(0.5, 0.25), (0.5,)])
def test_bounds_of_ones_own_end_with_the_budget(shares: tuple[float, ...]) -> None:
    budgets = stage_budgets(Budget(macs=0.25, bytes=0.01), shares)
    assert budgets == [Budget(macs=0.5, bytes=0.1), Budget(macs=0.25, bytes=0.01)]


@pytest.mark.parametrize("stages", [0, (0.2,), (0.5, 0.6), (1.0, 0.5)])
def test_bounds_that_do_not_fall_are_rejected(stages: Any) -> None:
    with pytest.raises(ValueError, match=r"1 to 100 stages|fall from 1 to macs=0\.25"):
        stage_budgets(Budget(macs=0.25), stages)


# ---- composition


@pytest.fixture(scope="module")
def data() -> DataSplits:
    return load_splits(CONFIG)


@pytest.fixture(scope="module")
def make(data: DataSplits) -> Callable[[nn.Module], ChannelPruning]:
    return partial(CONFIG.spec.prepare, data)


@pytest.fixture(scope="module")
def model(data: DataSplits) -> nn.Module:
    network = build_original("digitsnet", facts_of(data))
    load_weights(network, Path(WEIGHTS))
    return network


@pytest.mark.slow
def test_plans_and_costs_of_a_cut_network_are_those_of_the_original(
    make: Callable[[nn.Module], ChannelPruning], model: nn.Module
) -> None:
    original = make(model)
    rng = np.random.default_rng(0)
    half = CompressionPlan({d.key: d.nearest(0.6) for d in original.decisions})
    cut = original.compress(half)
    before = Composition(original, original.kept_units(half))
    learner = make(cut)
    learner.decisions = before.next_decisions(learner.decisions)
    for d, whole in zip(learner.decisions, original.decisions, strict=True):
        # min_ratio is a share of the original, not of what is left.
        assert d.size == whole.units(half[whole.key])
        assert d.units(d.choices[0]) == whole.units(whole.choices[0])
    plan = CompressionPlan({d.key: float(rng.choice(d.choices)) for d in learner.decisions})
    total = before.in_original(plan, learner.decisions)
    assert dict(before.in_smaller(total, learner.decisions)) == pytest.approx(dict(plan))
    smaller = learner.compress(plan)
    costs = before.cost(total)
    assert costs["params"] == sum(p.numel() for p in smaller.parameters())
    budget = before.budget(Budget(params=0.3, macs=(0.1, 0.9)))
    left = sum(p.numel() for p in cut.parameters()) / sum(p.numel() for p in model.parameters())
    assert budget.bounds["params"][1] == pytest.approx(0.3 / left)
    assert budget.bounds["macs"][1] == 1.0  # met already
    # The original's slice by the composed units has the shapes, so the weights fit.
    kept = before.with_kept(learner.kept_units(plan))
    sliced = original.traced.slice(kept)
    sliced.load_state_dict(smaller.state_dict())
    images = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(sliced.eval()(images), smaller(images))


def test_composed_units_are_the_units_of_the_original_that_are_left(
    make: Callable[[nn.Module], ChannelPruning], model: nn.Module
) -> None:
    """Without repair the weights of the twice cut network are the original's at these units."""
    original = make(model)
    group = original.decisions[0].target
    before = Composition(original, {group: torch.tensor([1, 4, 6, 7])})
    kept = before.with_kept({group: torch.tensor([0, 3]), "other": torch.tensor([5])})
    assert kept[group].tolist() == [1, 7]
    assert kept["other"].tolist() == [5]


def test_groups_that_are_not_found_again_are_rejected(
    make: Callable[[nn.Module], ChannelPruning], model: nn.Module
) -> None:
    original = make(model)
    before = Composition(original, {})
    with pytest.raises(PlanMismatchError, match="cut this network in one stage"):
        before.next_decisions(original.decisions[1:])


# ---- the whole


@pytest.mark.slow
def test_every_stage_meets_its_budget_from_python(
    make: Callable[[nn.Module], ChannelPruning], model: nn.Module, data: DataSplits
) -> None:
    result = progressive_compression(
        make, model, data.train, "macs=0.5", stages=(0.75,), agent="uniform", episodes=1,
        epochs_between=1, config=TrainingConfig(learning_rate=0.01, precision="fp32"),
    )  # fmt: skip
    assert [s.budget for s in result.stages] == ["macs=0.75", "macs=0.5"]
    first, last = (s.cost_ratio["macs"] for s in result.stages)
    assert last <= 0.5 < first <= 0.75
    original = make(model)
    cost = Composition(original, {}).ratio(result.plan)
    assert cost == result.best.cost_ratio
    sliced = original.traced.slice(result.kept)
    sliced.load_state_dict(result.network.state_dict())
    assert cost["params"] == pytest.approx(
        sum(p.numel() for p in sliced.parameters()) / sum(p.numel() for p in model.parameters())
    )
    assert isinstance(result.stages[0], StageFacts)
    assert result.stages[0].finetuned_score is not None
    assert result.stages[1].finetuned_score is None


@pytest.mark.slow
def test_stages_of_other_arguments_are_not_taken_over(
    make: Callable[[nn.Module], ChannelPruning], model: nn.Module, data: DataSplits, tmp_path: Path
) -> None:
    asked: dict[str, Any] = {"agent": "uniform", "episodes": 1, "epochs_between": 0}
    search = partial(
        progressive_compression, make, model, data.train, stages=(0.75,), folder=tmp_path, **asked
    )
    first = search("macs=0.5")
    assert search("macs=0.5").plan == first.plan
    with pytest.raises(RunFolderError, match=r"budget macs=0\.5 there, macs=0\.45 now"):
        search("macs=0.45")
    with pytest.raises(RunFolderError, match="seed 0 there, 1 now"):
        search("macs=0.5", seed=1)


@pytest.mark.slow
def test_run_killed_anywhere_ends_with_the_same_plan_and_metrics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import amc_compress.learners.training.loop as training
    import amc_compress.stages.progressive as progressive
    from amc_compress.runs.storage.trials import TrialRecorder

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = ["compress", *SMALL, "--progressive", "2"]
    assert run([*command, "--out", str(whole)]) == 0

    moments = [
        (TrialRecorder, "_append", 2),  # in the search of the first stage
        (training, "save_last", 1),  # in its fine-tuning
        (progressive, "write_json", 1),  # with the stage written down by half
        (progressive, "save_network", 1),  # just after it
        (TrialRecorder, "_append", 2),  # in the search of the second stage
    ]
    for number, (owner, name, calls) in enumerate(moments):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, dies_after(calls, getattr(owner, name)))
            resume = ["--resume"] if number else []
            with pytest.raises(Killed):
                run([*command, "--out", str(killed), *resume])
        for lock in killed.glob(".lock"):
            lock.unlink()  # a killed process holds none
    assert run([*command, "--out", str(killed), "--resume"]) == 0

    assert (killed / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    expected = safetensors.torch.load_file(whole / "model.safetensors")
    got = safetensors.torch.load_file(killed / "model.safetensors")
    assert all(torch.equal(got[key], value) for key, value in expected.items())
    summaries = [json.loads((out / "summary.json").read_text()) for out in (killed, whole)]
    for summary in summaries:
        del summary["seconds"], summary["cpu_seconds_per_episode"]
        for stage in summary["stages"]:
            del stage["seconds"], stage["cpu_seconds"]
    assert summaries[0] == summaries[1]
    # The plan is one of the original, and so is what is loaded by it.
    plan = CompressionPlan.from_json((whole / "plan.json").read_text())
    ratio = summaries[1]["compressed"]["macs"] / summaries[1]["original"]["macs"]
    assert ratio == pytest.approx(summaries[1]["cost_ratio"]["macs"])
    assert ratio <= 0.4
    assert min(plan.values()) < 1.0
    network = load_compressed(whole)
    assert sum(p.numel() for p in network.parameters()) == summaries[1]["compressed"]["params"]


def test_stages_that_do_not_lead_to_the_budget_are_rejected_before_the_work(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "run"
    sentence = fails("compress", *SMALL, "--stages", "0.3", "--out", str(out))
    assert "fall from 1 to macs=0.4" in sentence
    assert not out.exists()
