"""Trainings in several processes, from the command line."""

from __future__ import annotations

import logging
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.runs.command_line import QUICK

from amc_compress.cli import run
from amc_compress.commands import devices
from amc_compress.commands.devices import on_devices
from amc_compress.interruptions import exit_code


def test_processes_that_cannot_be_had_are_rejected(
    copy: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "--devices >= 1, got 0" in fails("finetune", str(copy), "--devices", "0")
    with pytest.raises(ValueError, match="Expected --device cuda for 2 processes"):
        on_devices(2, "cuda:1", copy, lambda *_: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ValueError, match="at most 1 processes on this machine"):
        on_devices(2, "cuda", copy, lambda *_: None)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "got amc search, which one carries out" in fails("search", "--out", str(copy / "new"))
    assert "Expected --devices 2, as many" in fails("finetune", str(copy), "--devices", "3")


def test_a_launch_that_is_asked_to_end_is_interrupted(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as the launcher leaves its own
        raise devices.SignalException("ended", signal.SIGTERM)

    launcher = logging.getLogger("torch.distributed.elastic.agent.server.api")
    before, handler = launcher.level, signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(devices, "elastic_launch", lambda *_: ended)
    try:
        with pytest.raises(KeyboardInterrupt, match="SIGTERM") as caught:
            on_devices(2, "cpu", Path(), lambda *_: None)
        assert exit_code(caught.value) == 143
        assert signal.getsignal(signal.SIGTERM) is handler
        assert not launcher.isEnabledFor(logging.WARNING)
    finally:
        launcher.setLevel(before)


def finetuned(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_two_processes_finetune_the_network_of_one(tmp_path: Path) -> None:
    folders = {name: tmp_path / name for name in ("one", "launched", "torchrun")}
    quick = [word for word in QUICK if word not in ("--epochs", "2")]
    assert run(["search", *quick, "--out", str(folders["one"]), "--quiet"]) == 0
    for name in ("launched", "torchrun"):
        shutil.copytree(folders["one"], folders[name])
    options = ("--epochs", "2", "--sync-batch-norm", "--accumulate", "2")
    amc = ("amc_compress", "finetune")
    for command in (
        (*amc, str(folders["one"]), *options),
        (*amc, str(folders["launched"]), *options, "--devices", "2"),
        ("torch.distributed.run", "--nproc-per-node", "2", "-m", *amc, str(folders["torchrun"]),
         *options),
    ):  # fmt: skip
        done = finetuned(*command)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("model.safetensors") == 1
        assert done.stderr.count("epoch 2/2") == 1
    folders["compress"] = tmp_path / "compress"
    whole = ("compress", *quick, *options, "--no-export", "--out", str(folders["compress"]))
    done = finetuned("amc_compress", *whole, "--devices", "2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("accuracy") == 1
    assert [done.stderr.count(said) for said in ("2/5] search", "3/5] finetune", "epoch 2/2")] == [
        1, 1, 1,
    ]  # fmt: skip
    found = {
        name: safetensors.torch.load_file(folder / "model.safetensors")
        for name, folder in folders.items()
    }
    for key, value in found["launched"].items():
        assert torch.equal(found["torchrun"][key], value)
        assert torch.equal(found["compress"][key], value)
        # Norms on a processor round differently, which 18 steps make larger.
        torch.testing.assert_close(found["one"][key], value, rtol=0.01, atol=0.01)
    wrong = finetuned(*amc, str(folders["launched"]), "--devices", "2", "--learning-rate", "1e9")
    assert wrong.returncode == 2
    assert wrong.stderr.count("amc: ") == 1
    assert "lower the learning rate" in wrong.stderr


@pytest.mark.slow
def test_two_nodes_finetune_the_network_of_one(tmp_path: Path) -> None:
    one, shared = tmp_path / "one", tmp_path / "shared"
    quick = [word for word in QUICK if word not in ("--epochs", "2")]
    assert run(["search", *quick, "--out", str(one), "--quiet"]) == 0
    shutil.copytree(one, shared)
    finetune = ("-m", "amc_compress", "finetune")
    torchrun = ("torch.distributed.run", "--nproc-per-node")
    options = ("--epochs", "2", "--sync-batch-norm")
    done = finetuned(*torchrun, "2", *finetune, str(one), *options)
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = [
        subprocess.Popen(
            [sys.executable, "-m", *torchrun, "1", "--nnodes", "2", "--node-rank", str(rank),
             "--master-addr", "127.0.0.1", "--master-port", port, *finetune, str(shared), *options],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    said = [node.communicate(timeout=300.0) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert [out.count("model.safetensors") for out, _ in said] == [1, 0]
    assert [error.count("epoch 2/2") for _, error in said] == [1, 0]
    assert (shared / "model.safetensors").read_bytes() == (one / "model.safetensors").read_bytes()
    assert {path.name for path in shared.iterdir()} == {path.name for path in one.iterdir()}
