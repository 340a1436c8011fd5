"""Runs on data of the user's own, ``--data package.module:factory``, and on scenes of digits."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.runs.command_line import WEIGHTS

from amc_compress.cli import run
from amc_compress.config import RunConfig

QUICK = ["--evaluations", "2", "--agent", "random", "--epochs", "1", "--precision", "fp32",
         "--no-export"]  # fmt: skip

IMAGES = """
from amc_compress.data import load_data

def loaders(batch_size, seed, shift=0):
    data = load_data("digits", batch_size=batch_size, seed=seed)
    first = [next(iter(loader)) for loader in (data.train, data.validation, data.test)]
    return {
        name: [(images + shift, labels)]
        for name, (images, labels) in zip(("train", "val", "test"), first)
    }

def others(batch_size, seed):
    return loaders(batch_size, seed, shift=0.5)
"""

NUMBERS = """
import torch
from torch import nn
from torch.utils.data import TensorDataset

def net():
    return nn.Sequential(
        nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 1)
    )

def trained():
    made = net()
    made.load_state_dict({k: torch.full_like(v, 0.25) for k, v in made.state_dict().items()})
    return made

def rows(count, seed):
    x = torch.randn(count, 3, generator=torch.Generator().manual_seed(seed))
    return TensorDataset(x, x[:, :1] * x[:, 1:2] + x[:, 2:])

def data():
    return rows(512, 0), rows(128, 1)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with modules of the user's."""
    (tmp_path / "own_images.py").write_text(IMAGES)
    (tmp_path / "own_numbers.py").write_text(NUMBERS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    for name in ("own_images", "own_numbers"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


@pytest.mark.slow
def test_loaders_of_a_factory_are_compressed_on(
    here: Path, fails: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", "--data", "own_images:loaders", "--weights", WEIGHTS, "--out", "out",
               *QUICK]  # fmt: skip
    assert run(command) == 0
    assert "Taking the task 'classification'" in capsys.readouterr().err
    options = json.loads((here / "out/config.json").read_text())["options"]
    assert options["task"] == "classification"
    summary = json.loads((here / "out/summary.json").read_text())
    assert summary["cost_ratio"]["macs"] <= 0.5
    assert summary["original"]["accuracy"] > 0.9

    assert run([*command, "--resume"]) == 0
    other = [*command[:2], "own_images:others", *command[3:], "--resume"]
    assert "data" in fails(*other)
    assert "names code to be run: the data 'own_images:loaders'" in fails("evaluate", "out")
    assert run(["evaluate", "out", "--trust"]) == 0


def test_samples_that_are_no_images_are_compressed_too(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", "--model", "own_numbers:net", "--data", "own_numbers:data",
               "--round-to", "2", "--train-epochs", "3", "--out", "out", *QUICK]  # fmt: skip
    assert run(command) == 0
    assert "Taking the task 'regression'" in capsys.readouterr().err
    summary = json.loads((here / "out/summary.json").read_text())
    assert summary["cost_ratio"]["macs"] <= 0.5
    assert run(["evaluate", "out", "--trust"]) == 0


def test_scenes_have_networks_and_a_training_of_their_own() -> None:
    boxes, masks = RunConfig(data="digit-scenes"), RunConfig(data="digit-scenes:masks")
    assert (boxes.model, masks.model) == ("fcos_small", "unet_small")
    assert (boxes.part, masks.part) == ("body", None)
    assert RunConfig(data="digit-scenes", task="segmentation") == RunConfig(
        data="digit-scenes",
        task="segmentation",
        model="unet_small",
        batch_size=16,
        train_epochs=20,
        train_learning_rate=0.1,
        epochs=10,
    )
    given = RunConfig(data="digit-scenes", model="own:net", batch_size=8, epochs=0)
    assert (given.model, given.batch_size, given.epochs) == ("own:net", 8, 0)
    usual = RunConfig()
    assert (usual.model, usual.batch_size, usual.train_epochs, usual.epochs) == (
        "digitsnet", 128, 30, 30,
    )  # fmt: skip
    assert usual.train_learning_rate == 0.05


@pytest.mark.slow
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_scenes_are_compressed_without_further_options(here: Path, task: str) -> None:
    command = ["compress", "--data", "digit-scenes", "--task", task, "--budget", "macs=0.5",
               "--train-epochs", "2", "--validation-size", "50", "--out", "out"]  # fmt: skip
    assert run([*command, *QUICK[:-1]]) == 0
    summary = json.loads((here / "out/summary.json").read_text())
    assert summary["cost_ratio"]["macs"] <= 0.5
    assert (here / "out/report.html").exists()
    model, labels = {"detection": ("fcos_small", "boxes")}.get(task, ("unet_small", "masks"))
    own = ["--model", model, "--data", f"digit-scenes:{labels}"]
    assert run(["evaluate", *own, "--weights", "out/original.safetensors"]) == 0


def test_a_network_that_its_factory_trained_is_not_trained_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compress", "--model", "own_numbers:trained", "--data", "own_numbers:data",
               "--round-to", "2", "--train-epochs", "0", "--out", "out", *QUICK]  # fmt: skip
    assert run(command) == 0
    said = capsys.readouterr().err
    assert "train: no training (0 epochs) of own_numbers:trained" in said
    assert "skipped, 0 epochs: weights taken as the factory gave them" in said
    kept = safetensors.torch.load_file(here / "out/original.safetensors")
    made = sys.modules["own_numbers"].trained().state_dict()
    assert kept.keys() == made.keys()
    assert all(torch.equal(kept[key], made[key]) for key in made)
    assert (here / "out/report.html").is_file()
    assert run([*command, "--resume"]) == 0
    assert "train: done before" in capsys.readouterr().err
