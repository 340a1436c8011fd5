"""A run killed by ``kill -9`` in search, then in fine-tuning, ends as if it had not been."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch

from amc_compress.models import pretrained_weights

PATIENCE = 180.0


KINDS = {
    "channels": ["--round-to", "2"],
    "uniform": ["--learner", "uniform", "--weight-bits", "2-8", "--activation-bits", "4,8"],
    "workers": ["--agent", "local", "--parallel", "3", "--workers", "2"],
}
RESUMED = {"workers": ["--workers", "1"]}
"""Options that may be others when a run is resumed."""


def command(kind: str, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "amc_compress", "compress",
        "--weights", str(pretrained_weights("digitsnet")), "--agent", "ddpg", "--evaluations", "45",
        "--epochs", "6", "--no-export", "--threads", "1", "--quiet",
        "--out", str(out), *KINDS[kind], *more, *(RESUMED.get(kind, []) if more else []),
    ]  # fmt: skip


def kill_when(arguments: list[str], ripe: Callable[[], bool]) -> None:
    """Starts a process and kills it, without warning, as soon as ``ripe`` says so."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(arguments, env=environment, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + PATIENCE
        while not ripe():
            assert process.poll() is None, "the run ended before it could be killed"
            assert time.monotonic() < end, "the run did not come to the point to be killed at"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_killed_run_ends_with_plan_and_metrics_of_an_uninterrupted_one(
    kind: str, tmp_path: Path
) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run(command(kind, whole), check=True, capture_output=True)

    # Episode 35 lies behind DDPG's warm-up, so that its networks have been trained already.
    kill_when(command(kind, killed), lambda: lines(killed / "trials.jsonl") >= 35)
    assert not (killed / "plan.json").exists()
    checkpoint = killed / "checkpoints" / "finetune" / "last.pt"
    kill_when(command(kind, killed, "--resume"), checkpoint.exists)
    assert not (killed / "model.safetensors").exists()
    subprocess.run(command(kind, killed, "--resume"), check=True, capture_output=True)

    assert (killed / "plan.json").read_bytes() == (whole / "plan.json").read_bytes()
    got = safetensors.torch.load_file(killed / "model.safetensors")
    for key, value in safetensors.torch.load_file(whole / "model.safetensors").items():
        assert torch.equal(got[key], value), key
    assert lines(killed / "trials.jsonl") == lines(whole / "trials.jsonl") == 45
    summaries = [json.loads((run / "summary.json").read_text()) for run in (killed, whole)]
    for summary in summaries:  # times differ, nothing else does
        del summary["seconds"], summary["cpu_seconds_per_episode"]
    assert summaries[0] == summaries[1]
