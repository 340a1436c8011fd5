"""Runs that decide depth: searched, trained, reported, and read again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from amc_compress.cli import run
from amc_compress.runs.networks import load_compressed, read_shape

MODEL = ("--model", "support.networks.residual_networks:digits", "--data", "digits")


@pytest.mark.slow
def test_a_run_leaves_out_branches_and_reports_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    few = ("--agent", "random", "--evaluations", "8", "--epochs", "1", "--train-epochs", "1")
    budget = ("--depth", "--budget", "depth=0.5", "--round-to", "4", "--n-validation", "50")
    options = (*MODEL, *few, *budget, "--no-export", "--quiet", "--out", str(out))
    assert run(["compress", *options]) == 0
    kept = read_shape(out / "model.safetensors").kept
    left_out = [name for name in kept if name.endswith(":depth")]
    assert left_out
    assert all(not len(kept[name]) for name in left_out)
    network = load_compressed(out, trust=True)
    assert network(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    assert json.loads((out / "summary.json").read_text())["cost_ratio"]["depth"] <= 0.5
    assert "Residual branches that are there" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    "more", [("--progressive", "2"), ("--finetune-groups", "2"), ("--sparse-training", "growing")]
)
def test_what_knows_channels_alone_is_rejected_before_anything_is_lost(
    tmp_path: Path, fails: Callable[..., str], more: tuple[str, ...]
) -> None:
    sentence = fails("compress", *MODEL, "--depth", *more, "--out", str(tmp_path / "run"))
    assert f"Expected --depth or {more[0]}, got both" in sentence
