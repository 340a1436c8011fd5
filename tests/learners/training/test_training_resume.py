"""Interrupted training: the same bits after resuming, and nothing lost on the way."""

from __future__ import annotations

import os
import resource
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.small_training import dropping_network as network
from torch import Tensor, nn

from amc_compress.learners.training import checkpoints
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import train
from amc_env.errors import RunFolderError

CONFIG = TrainingConfig(
    epochs=5, learning_rate=0.1, precision="fp32", warmup_epochs=1, label_smoothing=0.1
)


class Data:
    """Shuffled by the epoch; raises at the given one, in its middle."""

    def __init__(self, stop_at: int | None = None) -> None:
        generator = torch.Generator().manual_seed(3)
        self.images = torch.randn(60, 1, 6, 6, generator=generator)
        self.labels = (self.images.mean((1, 2, 3)) > 0).long()
        self.epoch = 0
        self.stop_at = stop_at

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 3

    def __iter__(self) -> Any:
        order = torch.randperm(60, generator=torch.Generator().manual_seed(self.epoch))
        for index, part in enumerate(order.split(20)):
            if self.epoch == self.stop_at and index == 1:
                raise KeyboardInterrupt
            yield self.images[part], self.labels[part]


def same(a: nn.Module, b: nn.Module) -> bool:
    x, y = a.state_dict(), b.state_dict()
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def untimed(result: Any) -> list[Any]:
    return [replace(record, seconds=0.0) for record in result.history]


@pytest.mark.parametrize("stop_at", [0, 1, 4])
@pytest.mark.parametrize(
    "change",
    [
        {},
        {"ema_decay": 0.9, "optimizer": "adamw", "learning_rate": 0.01},
        {"precision": "bf16", "schedule": "one-cycle", "gradient_clip": 1.0},
    ],
)
def test_a_resumed_run_ends_with_the_same_bits(
    tmp_path: Path, stop_at: int, change: dict[str, Any]
) -> None:
    config = replace(CONFIG, **change)
    teacher = network()
    straight, resumed = network(), network()
    expected = train(straight, Data(), Data(), config, teacher=teacher)
    with pytest.raises(KeyboardInterrupt):
        train(network(), Data(stop_at), Data(), config, teacher=teacher, checkpoint_dir=tmp_path)
    # The global state of another process; it must not matter.
    torch.manual_seed(12345 + stop_at)
    got = train(
        resumed, Data(), Data(), config, teacher=teacher, checkpoint_dir=tmp_path, resume=True
    )
    assert same(straight, resumed)
    assert untimed(got) == untimed(expected)
    assert (got.best_epoch, got.best_score) == (expected.best_epoch, expected.best_score)
    stored = safetensors.torch.load_file(tmp_path / "best.safetensors")
    assert all(torch.equal(stored[k], v) for k, v in straight.state_dict().items())
    names = ["best.safetensors", "last.pt", "start.safetensors"]
    assert sorted(p.name for p in tmp_path.iterdir()) == names


@pytest.mark.parametrize("survives", [0, 1, 2, 3, 4, 5])
def test_killed_between_any_two_files_loses_nothing(
    tmp_path: Path, survives: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    straight, resumed = network(), network()
    train(straight, Data(), Data(), CONFIG)
    real, done = os.replace, 0

    def replace_some(source: Path, target: Path) -> None:
        nonlocal done
        if done == survives:
            raise KeyboardInterrupt
        done += 1
        real(source, target)

    monkeypatch.setattr(os, "replace", replace_some)
    with pytest.raises(KeyboardInterrupt):
        train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    monkeypatch.undo()
    train(resumed, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    assert same(straight, resumed)


def test_resuming_a_finished_run_returns_its_result(tmp_path: Path) -> None:
    first, second = network(), network()
    expected = train(first, Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    got = train(second, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    assert same(first, second)
    assert got == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 6}, r"epochs was 5, now it is 6"),
        ({"learning_rate": 0.2}, r"learning_rate was 0\.1, now it is 0\.2"),
    ],
)
def test_a_checkpoint_of_other_settings_is_rejected(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    with pytest.raises(RunFolderError, match=message):
        train(
            network(), Data(), Data(), replace(CONFIG, **change),
            checkpoint_dir=tmp_path, resume=True,
        )  # fmt: skip


def test_a_checkpoint_of_another_network_or_teacher_is_rejected(tmp_path: Path) -> None:
    train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 2))
    with pytest.raises(RunFolderError, match="network was '346 parameters"):
        train(other, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    with pytest.raises(RunFolderError, match="teacher was False, now it is True"):
        train(
            network(), Data(), Data(), CONFIG,
            teacher=network(), checkpoint_dir=tmp_path, resume=True,
        )  # fmt: skip


@pytest.mark.parametrize("name", ["last.pt", "best.safetensors"])
@pytest.mark.parametrize("keep", [0, 20, 700])
def test_truncated_files_are_rejected(tmp_path: Path, name: str, keep: int) -> None:
    train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(RunFolderError, match="missing, truncated or not ours"):
        train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)


def test_a_checkpoint_of_another_version_is_rejected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "CHECKPOINT_VERSION", 99)
    train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path)
    monkeypatch.undo()
    with pytest.raises(RunFolderError, match="has version 99, expected 2: finish the training"):
        train(network(), Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)


def test_a_full_disk_ends_with_a_sentence_and_the_run_can_go_on(tmp_path: Path) -> None:
    straight, resumed, stopped = network(), network(), network()
    train(straight, Data(), Data(), CONFIG)
    # A real error of the operating system: no file of this process may grow past the limit. The
    # first epoch's files are smaller than the later ones of a folder that fills up.
    with pytest.raises(KeyboardInterrupt):
        train(network(), Data(2), Data(), CONFIG, checkpoint_dir=tmp_path)
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, old[1]))
    try:
        with pytest.raises(RunFolderError, match=r"Cannot write .*: free some space"):
            train(stopped, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
    train(resumed, Data(), Data(), CONFIG, checkpoint_dir=tmp_path, resume=True)
    assert same(straight, resumed)


def test_tied_weights_are_saved(tmp_path: Path) -> None:
    tied: dict[str, Tensor] = {"a": torch.ones(3)}
    tied["b"] = tied["a"]
    checkpoints.save_best(tmp_path, tied)
    assert checkpoints.load_best(tmp_path)["b"].tolist() == [1.0, 1.0, 1.0]
