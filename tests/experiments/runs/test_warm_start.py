"""``--warm-start``: a search that knows from its start what another run has evaluated."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from support.runs.command_line import QUICK

from amc_compress.cli import run
from amc_compress.runs.storage.trials import read_trials
from amc_compress.runs.warm_start import FILE

Fails = Callable[..., str]


def search(out: Path, *more: str) -> list[str]:
    return ["search", *QUICK[:4], *QUICK[6:], *more, "--out", str(out), "--quiet"]


def test_what_another_run_evaluated_is_known_and_costs_nothing(finished: Path, tmp_path: Path):
    out = tmp_path / "warm"
    options = ["--agent", "local", "--evaluations", "3", "--warm-start", str(finished)]
    arguments = ["compress", *QUICK, *options, "--no-export", "--out", str(out), "--quiet"]
    assert run(arguments) == 0
    known, own = read_trials(finished / "trials.jsonl"), read_trials(out / "trials.jsonl")
    assert read_trials(out / FILE) == known
    assert len(own) == 3
    assert not {str(t.plan) for t in own} & {str(t.plan) for t in known}  # nothing twice
    best = json.loads((out / "state.json").read_text())["stages"]["search"]["best"]
    assert best["reward"] >= max(t.reward for t in own)
    assert best["reward"] in {t.reward for t in (*known, *own)}


@pytest.mark.slow
def test_a_better_plan_of_the_other_run_is_the_result(tmp_path: Path):
    first, out = tmp_path / "first", tmp_path / "warm"
    assert run(search(first, "--agent", "local", "--evaluations", "6")) == 0
    options = ["--agent", "sensitivity", "--warm-start", str(first), "--epochs", "0", "--no-export"]
    assert run(["compress", *QUICK, *options, "--out", str(out), "--quiet"]) == 0
    assert read_trials(out / "trials.jsonl") == []  # the uniform plan was known as well
    assert (out / "plan.json").read_text() == (first / "plan.json").read_text()
    assert "Nothing new was evaluated" in (out / "report.html").read_text()


@pytest.mark.slow
def test_a_search_goes_on_without_the_other_run(copy: Path, tmp_path: Path, monkeypatch):
    whole, again = tmp_path / "whole", tmp_path / "again"
    monkeypatch.chdir(copy.parent)
    arguments = ["--agent", "local", "--evaluations", "6", "--warm-start", copy.name]
    assert run(search(whole, *arguments)) == 0
    shutil.copytree(whole, again)
    state = json.loads((again / "state.json").read_text())
    state["stages"]["search"] = {"done": False}
    (again / "state.json").write_text(json.dumps(state))
    lines = (again / "trials.jsonl").read_text().splitlines(keepends=True)
    (again / "trials.jsonl").write_text("".join(lines[:2]))
    shutil.rmtree(copy)
    assert run([*search(again, *arguments), "--resume"]) == 0
    assert (again / "plan.json").read_text() == (whole / "plan.json").read_text()
    plans = [[t.plan for t in read_trials(p / "trials.jsonl")] for p in (whole, again)]
    assert plans[0] == plans[1]


@pytest.mark.slow
def test_what_a_run_knew_itself_is_passed_on(finished: Path, tmp_path: Path):
    second, third = tmp_path / "second", tmp_path / "third"
    options = ["--agent", "random", "--evaluations", "2", "--seed", "0"]
    assert run(search(second, *options, "--warm-start", str(finished))) == 0
    assert run(search(third, *options, "--warm-start", str(second))) == 0
    known = read_trials(finished / "trials.jsonl") + read_trials(second / "trials.jsonl")
    assert read_trials(third / FILE) == known


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--criterion", "l2"], "by other rules: --criterion is 'l1' there and 'l2' now"),
        (["--seed", "1"], "--seed is 0 there and 1 now"),
        (["--n-validation", "100"], "--n-validation is 3000 there and 100 now"),
        (["--progressive", "2"], "one search by an agent"),
    ],
)
def test_a_run_that_evaluated_by_other_rules_is_rejected(
    finished: Path, tmp_path: Path, fails: Fails, options: list[str], message: str
):
    out = tmp_path / "warm"
    assert message in fails(*search(out, "--warm-start", str(finished), *options))
    assert not out.exists()


def test_a_folder_that_is_no_run_is_rejected(tmp_path: Path, fails: Fails):
    out = tmp_path / "warm"
    assert "config.json" in fails(*search(out, "--warm-start", str(tmp_path / "nothing")))
    assert not out.exists()


def test_a_run_without_trials_is_rejected(copy: Path, tmp_path: Path, fails: Fails):
    (copy / "trials.jsonl").unlink()
    assert "evaluated no plan yet" in fails(*search(tmp_path / "warm", "--warm-start", str(copy)))


def test_a_network_with_other_weights_is_rejected(copy: Path, tmp_path: Path, fails: Fails):
    tensors = load_file(copy / "original.safetensors")
    name = next(iter(tensors))
    save_file({**tensors, name: tensors[name] + 1}, copy / "original.safetensors")
    message = fails(*search(tmp_path / "warm", "--warm-start", str(copy)))
    assert "network with other weights" in message
