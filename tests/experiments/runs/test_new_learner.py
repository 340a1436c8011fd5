"""A learner is added by a class, its specification, and one line of the registry."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.runs.command_line import WEIGHTS
from torch import Tensor

from amc_compress.cli import run
from amc_compress.config.learner_specs import LEARNERS
from amc_compress.config.learner_specs.channels import ChannelSpec
from amc_compress.config.run_config import RunConfig
from amc_compress.learners.base import Learner
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.runs.networks import load_compressed, read_shape


class FirstChannels(ChannelPruning):
    """Keeps the first channels of every group."""

    def select(self, group: str, count: int) -> Tensor:
        return torch.arange(count)


class FirstChannelsSpec(ChannelSpec):
    title = "Pruning of the last channels"
    reads = ("channels",)

    takes = ("round_to", "min_ratio")

    def learner(self) -> type[FirstChannels]:
        return FirstChannels


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LEARNERS, "first-channels", FirstChannelsSpec)


OPTIONS = ("--weights", WEIGHTS, "--learner", "first-channels", "--quiet")


def test_new_learner_is_searched_trained_evaluated_and_reported(tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ("--agent", "random", "--evaluations", "2", "--epochs", "1", "--n-validation", "50")
    assert (
        run(["compress", *OPTIONS, *few, "--round-to", "4", "--no-export", "--out", str(out)]) == 0
    )
    kept = read_shape(out / "model.safetensors").kept
    assert kept
    assert all(torch.equal(units, torch.arange(len(units))) for units in kept.values())
    assert load_compressed(out)(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["learner"] == "first-channels"
    assert summary["cost_ratio"]["macs"] <= 0.5
    assert "Pruning of the last channels of digitsnet" in (out / "report.html").read_text()


def test_every_specification_fits_its_class() -> None:
    for name in LEARNERS:
        spec = RunConfig(learner=name).spec
        assert issubclass(spec.learner(), Learner)
        spec.learner().Options(**spec.own_options())


def test_new_learner_rejects_the_options_of_others(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    sentence = fails("compress", *OPTIONS, "--weight-bits", "4", "--out", str(tmp_path / "run"))
    assert "--weight-bits has no effect on --learner first-channels" in sentence
