"""Code of the user that fails or exits: one sentence says whose, in which file and line."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.runs.command_line import WEIGHTS

from amc_compress.cli import run
from amc_compress.user_code import place_of

SOURCE = """
import os, sys
from torch import nn
from amc_compress.agents import Agent, RandomSearch
from amc_env import CostModel
from more_code import fail

def trouble(place):
    wanted = os.environ.get("FAIL_IN")
    frame = sys._getframe(1)
    while wanted and frame is not None:
        if wanted in (place, frame.f_code.co_name):
            fail()  # line 13
        frame = frame.f_back

trouble("import")

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
        )
    def forward(self, x):
        trouble("forward")
        return self.layers(x)

def make():
    trouble("factory")
    return Net()

class Mine(RandomSearch):
    def __init__(self):
        super().__init__()
        trouble("agent")
    def run(self, search):
        search.uniform()
        trouble("running agent")
        super().run(search)

def reward(result):
    trouble("reward")
    return result.score

class Cost(CostModel):
    def __init__(self, graph, decisions):
        pass
    def __call__(self, values):
        trouble("cost")
        return 1.0 + float(sum(values))
"""
MORE = """
import os, sys
import typer
def fail():
    how = os.environ["FAIL_HOW"]
    if how == "exit":
        sys.exit(0)
    raise {"value": ValueError, "key": KeyError, "stop": StopIteration, "eof": EOFError,
           "typer": typer.Exit, "base": BaseException}[how]("boom")
"""
EXIT = "ended the process with sys.exit(0) ("


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user in the current directory, with one that it imports."""
    name = f"own_{tmp_path.name}"
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "more_code", raising=False)
    Path(f"{name}.py").write_text(SOURCE)
    Path("more_code.py").write_text(MORE)
    return name


def options(own: str) -> list[str]:
    return ["--model", f"{own}:make", "--agent", f"{own}:Mine", "--reward", f"{own}:reward",
            "--cost", f"own={own}:Cost", "--budget", "macs=0.6,own=0.9", "--evaluations", "4",
            "--epochs", "1", "--train-epochs", "1", "--precision", "fp32", "--round-to", "4",
            "--out", "run", "--quiet"]  # fmt: skip


@pytest.mark.parametrize("how", ["exit", "value", "key", "eof", "typer", "base"])
@pytest.mark.parametrize(
    ("place", "what"),
    [
        ("import", "reward '{}:reward'"),
        ("agent", "agent '{}:Mine'"),
        ("factory", "model '{}:make'"),
        ("forward", "model '{}:make'"),
        ("reward", "reward '{}:reward'"),
        ("cost", "cost '{}:Cost'"),
    ],
)
def test_whose_code_failed_is_said_before_a_folder_is_made(
    own: str,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    what: str,
    how: str,
) -> None:
    monkeypatch.setenv("FAIL_IN", place)
    monkeypatch.setenv("FAIL_HOW", how)
    sentence = fails("compress", *options(own))
    assert f"the {what.format(own)}" in sentence
    line = 7 if how == "exit" else 8
    assert f"{Path.cwd() / 'more_code.py'}, line {line}" in sentence
    assert EXIT in sentence if how == "exit" else "boom" in sentence or how == "typer"
    assert "Internal" not in sentence
    assert not Path("run").exists()


@pytest.mark.slow
def test_whose_code_failed_is_said_in_every_stage(
    own: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [
        ("run_train", "model", "exit"), ("run_search", "model", "exit"),
        ("running agent", "agent", "key"), ("run_finetune", "model", "value"),
        ("run_export", "model", "exit"),
    ]  # fmt: skip
    for place, what, how in stages:
        monkeypatch.setenv("FAIL_IN", place)
        monkeypatch.setenv("FAIL_HOW", how)
        sentence = fails("compress", *options(own), "--resume")
        assert f"the {what} '{own}:" in sentence
        assert f"more_code.py, line {7 if how == 'exit' else 8}" in sentence
    monkeypatch.delenv("FAIL_IN")
    assert run(["compress", *options(own), "--resume"]) == 0
    assert Path("run/report.html").exists()


def test_a_file_that_is_no_python_is_named_with_its_line(
    own: str, fails: Callable[..., str]
) -> None:
    Path("typo.py").write_text("import torch\ndef make(:\n")
    sentence = fails("compress", "--model", "typo:make", "--out", "run", "-q")
    assert "the model 'typo:make' failed: SyntaxError" in sentence
    assert f"({Path.cwd() / 'typo.py'}, line 2)" in sentence
    Path("needs.py").write_text("\nimport no_such_package_x\n")
    sentence = fails("compress", "--model", "needs:make", "--out", "run", "-q")
    assert "the model 'needs:make' failed: ModuleNotFoundError: No module" in sentence
    assert "needs.py, line 2)" in sentence


WRONG = """
import sys
from torch import nn
from amc_compress.agents import RandomSearch
class Wide(nn.Module):
    def forward(self, x):
        return x @ x.new_zeros(3, 10)
class Planless(RandomSearch):
    def run(self, search):
        search.env.evaluate({})
"""


@pytest.mark.slow
def test_what_a_library_or_we_say_about_a_call_is_kept(
    own: str, fails: Callable[..., str], tmp_path: Path
) -> None:
    Path("wrong.py").write_text(WRONG)
    sentence = fails("compress", "--model", "wrong:Wide", "--out", "run", "-q")
    assert "cannot read images of shape (1, 8, 8)" in sentence
    assert "in the code of the model 'wrong:Wide'" in sentence
    assert "wrong.py, line 7)" in sentence
    arguments = ["--weights", WEIGHTS, "--agent", "wrong:Planless", "--out", "run", "-q"]
    sentence = fails("search", *arguments)
    assert "the agent 'wrong:Planless'" in sentence
    assert "wrong.py, line 10)" in sentence


def test_what_is_none_of_the_users_code_is_not_called_so(
    own: str, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise KeyError("ours")

    monkeypatch.setattr("amc_compress.stages.pipeline.run_stages", bug)
    sentence = fails("compress", *options(own), code=1)
    assert sentence.startswith("amc: Internal error (KeyError: 'ours')")
    with pytest.raises(KeyError) as caught:
        bug()
    assert place_of(caught.value) is None

    def no_memory(*_: object, **__: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")

    monkeypatch.setattr("amc_compress.stages.pipeline.run_stages", no_memory)
    assert "There is not enough memory" in fails("compress", *options(own))
    assert not Path("run").exists()
