"""Runs that decide depth: searched, trained, reported, and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from support.networks.residual_networks import Images

from amc_compress.cli import run
from amc_compress.learners import ChannelPruning
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_compress.learners.tracing.labels.counting import count_macs, count_parameters
from amc_compress.runs.networks import load_compressed, read_shape
from amc_compress.stages.progressive import progressive_compression

MODEL = ("--model", "support.networks.residual_networks:digits", "--data", "digits")


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["channels", "joint"])
def test_a_run_leaves_out_branches_and_reports_it(tmp_path: Path, learner: str) -> None:
    out = tmp_path / "run"
    few = ("--agent", "random", "--evaluations", "8", "--epochs", "1", "--train-epochs", "1")
    budget = ("--depth", "--budget", "depth=0.5", "--round-to", "4", "--n-validation", "50")
    options = (
        "--learner", learner, *MODEL, *few, *budget, "--no-export", "--quiet", "--out", str(out)
    )  # fmt: skip
    assert run(["compress", *options]) == 0
    kept = read_shape(out / "model.safetensors").kept
    left_out = [name for name in kept if name.endswith(":depth")]
    assert left_out
    assert all(not len(kept[name]) for name in left_out)
    network = load_compressed(out, trust=True)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert json.loads((out / "summary.json").read_text())["cost_ratio"]["depth"] <= 0.5
    assert "Residual branches that are there" in (out / "report.html").read_text()


@pytest.mark.slow
def test_stages_leave_out_branches_one_after_the_other() -> None:
    torch.manual_seed(0)
    data = make_data(64, 0), make_data(64, 1)
    options = {"round_to": 2, "min_ratio": 0.5, "decide_depth": True, "n_recalibration": 32}
    make = partial(
        ChannelPruning, example_input=EXAMPLE, calibration=data[0], validation=data[1],
        precision="fp32", **options,
    )  # fmt: skip
    model = Images().eval()
    for seed in range(3):
        result = progressive_compression(
            make, model, data[0], "macs=0.4", stages=(0.8,), agent="random", episodes=3, seed=seed,
            epochs_between=0,
        )  # fmt: skip
        first, last = (stage.cost_ratio for stage in result.stages)
        assert last["macs"] <= min(0.4, first["macs"])
        assert first["macs"] <= 0.8
        assert result.best.cost["macs"] == count_macs(result.network, EXAMPLE)
        assert result.best.cost["params"] == count_parameters(result.network)
        sliced = make(model).traced.slice(result.kept).eval()
        sliced.load_state_dict(result.network.state_dict())
        assert torch.equal(sliced(EXAMPLE), result.network(EXAMPLE))


@pytest.mark.parametrize("more", [("--finetune-groups", "2"), ("--sparse-training", "growing")])
def test_what_knows_channels_alone_is_rejected_before_anything_is_lost(
    tmp_path: Path, fails: Callable[..., str], more: tuple[str, ...]
) -> None:
    sentence = fails("compress", *MODEL, "--depth", *more, "--out", str(tmp_path / "run"))
    assert f"Expected --depth or {more[0]}, got both" in sentence
