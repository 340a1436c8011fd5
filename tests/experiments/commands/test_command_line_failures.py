"""The command line: one sentence for every mistake, and interruptions that lose nothing."""

from __future__ import annotations

import errno
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from support.runs.command_line import QUICK, WEIGHTS
from support.selection import quick

from amc_compress.cli import run
from amc_compress.models import make_model
from amc_compress.runs.networks import load_compressed

# ---- bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "resnet21"], "Unknown model 'resnet21'"),
        (["--model", "no.such.module:net"], "cannot be imported"),
        (["--data", "no-such-data"], "no-such-data"),
        (["--agent", "ddgp"], "Unknown agent 'ddgp'"),
        (["--reward", "joy"], "Unknown --reward 'joy'"),
        (["--action", "left"], "Unknown --action 'left'"),
        (["--budget", "macs=0.01"], "reachable"),
        (["--budget", "macs=1.5"], "1.5"),
        (["--budget", "joules=0.5"], "Unknown cost 'joules'"),
        (["--criterion", "beauty"], "beauty"),
        (["--proxy", "guess"], "guess"),
        (["--weights", "missing.safetensors"], "no weights file"),
        (["--teacher", "mother"], "--teacher"),
        (["--evaluations", "many"], "--evaluations"),
        (["--evaluations", "0"], "--evaluations"),
        (["--device", "abacus"], "abacus"),
        (["--mean", "a,b"], "--mean"),
        (["--ignore", "no_such_layer"], "no_such_layer"),
        (["--bogus", "1"], "--bogus"),
    ],
)
def test_mistake_gives_one_sentence_and_leaves_no_folder(
    tmp_path: Path, fails: Callable[..., str], options: list[str], message: str
) -> None:
    out = tmp_path / "run"
    base = [] if "--model" in options else ["--weights", WEIGHTS]
    sentence = fails("compress", *base, "--evaluations", "2", *options, "--out", str(out), "-q")
    assert message in sentence
    assert not out.exists()


NETS = """
from torch import nn
def for_28_pixels():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
def for_5_classes():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 5))
def narrow():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
def mine(n_classes):
    return nn.Sequential(
        nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
        nn.Flatten(), nn.Linear(256, n_classes),
    )
"""


@pytest.fixture
def nets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with networks of a user's own, in the current directory."""
    name = f"nets_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("for_28_pixels", "cannot read images of shape"),
        ("for_5_classes", "Expected 10 outputs"),
        ("narrow", "cut"),
        ("missing", "missing"),
    ],
)
def test_network_of_the_users_own_that_does_not_fit_is_rejected(
    nets: str, fails: Callable[..., str], factory: str, message: str
) -> None:
    model = f"{nets}:{factory}"
    assert message in fails("compress", "--model", model, "--out", "run", "-q")
    assert not Path("run").exists()


def test_network_of_the_users_own_is_trained_and_compressed(nets: str) -> None:
    options = ["--model", f"{nets}:mine", "--train-epochs", "1", "--evaluations", "2"]
    assert run(["compress", *options, "--epochs", "1", "--no-export", "--out", "run", "-q"]) == 0
    assert json.loads(Path("run/summary.json").read_text())["cost_ratio"]["macs"] <= 0.5
    assert sum(p.numel() for p in load_compressed("run", trust=True).parameters()) > 0


def test_unknown_verb_and_missing_out_are_sentences(fails: Callable[..., str]) -> None:
    assert "squash" in fails("squash")
    assert "--out" in fails("compress")


def test_checkpoint_of_another_network_is_rejected(
    tmp_path: Path, fails: Callable[..., str]
) -> None:
    other = make_model("digitsnet", n_classes=7, in_channels=1)
    safetensors.torch.save_file(other.state_dict(), tmp_path / "other.safetensors")
    sentence = fails(
        "compress", "--weights", str(tmp_path / "other.safetensors"), "--out", str(tmp_path / "r")
    )
    assert "do not fit" in sentence


def test_nan_weights_are_rejected(tmp_path: Path, fails: Callable[..., str]) -> None:
    state = dict(safetensors.torch.load_file(WEIGHTS))
    state["linear.weight"][0, 0] = float("nan")
    safetensors.torch.save_file(state, tmp_path / "nan.safetensors")
    sentence = fails(
        "compress", "--weights", str(tmp_path / "nan.safetensors"), "--out", str(tmp_path / "r")
    )
    assert "NaN" in sentence


def test_diverging_training_ends_in_a_sentence(tmp_path: Path, fails: Callable[..., str]) -> None:
    sentence = fails(
        "train", "--learning-rate", "1e30", "--epochs", "1", "--out", str(tmp_path / "run"), "-q"
    )
    assert "learning rate" in sentence


def test_used_folder_needs_resume(copy: Path, fails: Callable[..., str]) -> None:
    assert "--resume" in fails("compress", *QUICK, "--out", str(copy))


def test_resume_with_another_option_names_it(copy: Path, fails: Callable[..., str]) -> None:
    sentence = fails("compress", *QUICK, "--seed", "1", "--out", str(copy), "--resume")
    assert "--seed is 0 there and 1 now" in sentence


@pytest.mark.parametrize(
    ("name", "command"),
    [
        ("config.json", "report"),
        ("state.json", "report"),
        ("summary.json", "report"),
        ("plan.json", "report"),
        ("trials.jsonl", "report"),
        ("model.safetensors", "evaluate"),
        ("original.safetensors", "evaluate"),
    ],
)
def test_truncated_file_of_a_run_is_named(
    copy: Path, fails: Callable[..., str], name: str, command: str
) -> None:
    path = copy / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert name in fails(command, str(copy))


def test_run_folder_of_another_version_is_rejected(copy: Path, fails: Callable[..., str]) -> None:
    path = copy / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"version": 2}))
    assert "version 2" in fails("report", str(copy))


@pytest.mark.parametrize("verb", ["report", "export", "finetune", "evaluate"])
def test_folder_that_is_no_run_is_rejected(
    tmp_path: Path, fails: Callable[..., str], verb: str
) -> None:
    assert "no run folder" in fails(verb, str(tmp_path))


def test_report_before_the_end_says_what_to_do(tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "run"
    assert run(["search", "--weights", WEIGHTS, "--evaluations", "1", "--agent", "uniform",
                "--out", str(out), "-q"]) == 0  # fmt: skip
    assert "amc finetune" in fails("report", str(out))
    assert "finetune" in fails("export", str(out))


# ---- interruptions


def same_results(one: Path, other: Path) -> None:
    """Asserts that two runs ended with the same plan, weights, trials and metrics."""
    assert (one / "plan.json").read_bytes() == (other / "plan.json").read_bytes()
    tensors = safetensors.torch.load_file(one / "model.safetensors")
    for key, value in safetensors.torch.load_file(other / "model.safetensors").items():
        assert torch.equal(value, tensors[key]), key
    volatile = {"seconds", "cpu_seconds"}
    trials: list[list[dict[str, Any]]] = [
        [
            {k: v for k, v in json.loads(line).items() if k not in volatile}
            for line in (folder / "trials.jsonl").read_text().splitlines()
        ]
        for folder in (one, other)
    ]
    assert trials[0] == trials[1]
    summaries = [json.loads((folder / "summary.json").read_text()) for folder in (one, other)]
    for summary in summaries:
        for key in ("seconds", "cpu_seconds_per_episode"):
            summary.pop(key)
        for name in ("original", "compressed"):
            summary[name].pop("latency_ms")
            summary[name].pop("onnx_bytes")  # one of the runs goes without
    assert summaries[0] == summaries[1]


class Stop:
    """Fails at the n-th call of something, once."""

    def __init__(self, call: Callable[..., Any], n: int, error: BaseException) -> None:
        self.call, self.left, self.error = call, n, error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.left -= 1
        if self.left == 0:
            raise self.error
        return self.call(*args, **kwargs)


def test_interrupted_search_and_finetuning_end_as_if_nothing_had_happened(
    finished: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import amc_compress.learners.training.loop
    from amc_compress.runs.storage.trials import TrialRecorder

    out = tmp_path / "run"
    command = ["compress", *QUICK, "--no-export", "--out", str(out), "--quiet"]
    with monkeypatch.context() as patch:
        stop = Stop(TrialRecorder._append, 4, KeyboardInterrupt())
        patch.setattr(TrialRecorder, "_append", lambda *a: stop(*a))
        assert "--resume" in fails(*command, code=130)
    assert len((out / "trials.jsonl").read_text().splitlines()) == 3
    with (out / "trials.jsonl").open("a") as file:
        file.write('{"episode": 3, "pl')  # half a line, as a crash leaves it
    with monkeypatch.context() as patch:
        stop = Stop(amc_compress.learners.training.loop.save_last, 2, KeyboardInterrupt())
        patch.setattr(amc_compress.learners.training.loop, "save_last", stop)
        fails(*command, "--resume", code=130)
    assert (out / "checkpoints" / "finetune" / "last.pt").exists()
    assert run([*command, "--resume"]) == 0
    same_results(out, finished)


@pytest.mark.parametrize(
    "name",
    quick(
        ["trials.jsonl", "last.pt", "config.json", "plan.json", "model.safetensors"], "trials.jsonl"
    ),
)
def test_full_disk_is_a_sentence_and_the_run_goes_on_afterwards(
    finished: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    out = tmp_path / "run"
    command = ["compress", *QUICK, "--no-export", "--out", str(out), "--quiet"]
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace, fsync = os.replace, os.fsync

    def no_room(source: Any, target: Any) -> None:
        if Path(target).name == name:
            raise full
        replace(source, target)

    def no_room_for_trials(descriptor: int) -> None:
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith(name):
            raise full
        fsync(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", no_room)
        patch.setattr(os, "fsync", no_room_for_trials)
        assert "disk is full" in fails(*command)
    assert run([*command, "--resume"]) == 0
    assert (out / "plan.json").read_bytes() == (finished / "plan.json").read_bytes()
    expected = safetensors.torch.load_file(finished / "model.safetensors")
    got = safetensors.torch.load_file(out / "model.safetensors")
    assert all(torch.equal(got[key], expected[key]) for key in expected)
