"""Code of the user: found by one syntax, whatever it is for."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import gymnasium
import pytest

from amc_env import Budget
from amc_env.errors import EvaluationError, InputDataError
from amc_env.reward import resolve_reward
from amc_env.validation.references import is_reference, resolve, sources

SOURCE = """
from amc_env import CostModel

class Energy(CostModel):
    name = "energy"
    def __init__(self, graph, decisions, storage=None):
        self.given = (graph, storage)
    def __call__(self, values):
        return 1.0 + float(sum(values))

class Nothing(Energy):
    def __call__(self, values):
        return None

class Outer:
    def reward(result):
        return 2.0 * result.score

def half(result):
    return 0.5 * result.score

def text(result):
    return "good"

def no_cost(graph, decisions):
    return 3

value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on the path."""
    name = f"things_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    (tmp_path / "numpy.py").write_text("raise SystemExit('not this one')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    return name


@pytest.mark.parametrize("what", ["model", "agent", "reward", "cost"])
def test_it_is_found_and_remembered_by_what_it_was_named_as(module, what):
    assert resolve(f"{module}:half", what).__name__ == "half"
    assert resolve(f"{module}:Outer.reward", what).__qualname__ == "Outer.reward"
    source = sources()[-1]
    assert source.title == f"{what} '{module}:Outer.reward'"
    assert source.covers(str(Path.cwd() / f"{module}.py"))
    assert source.covers(str(Path.cwd() / "helpers" / "more.py"))
    assert not source.covers(str(Path.cwd() / "venv/lib/site-packages/more.py"))
    assert not source.covers(json.__file__)
    assert source.defines(module, "Outer.reward")
    assert not source.defines(module, "Outer")


def test_the_current_directory_is_searched_last(module):
    import numpy

    resolve(f"{module}:half", "reward")
    assert sys.path[-1] == str(Path.cwd())
    assert resolve("numpy:array", "reward") is numpy.array
    with pytest.raises(InputDataError, match=r"'numpy' \(.* has no 'text'; it hides your .*numpy"):
        resolve("numpy:text", "reward")


def test_an_installed_package_that_was_in_use_is_not_the_users():
    import numpy

    resolve("numpy.linalg:norm", "reward")
    assert not sources()[-1].covers(numpy.random.__file__)


@pytest.mark.parametrize(
    ("reference", "better"),
    [
        ("nets.py:make", "; write nets:make"),
        ("./nets/small.py:make", "; write nets.small:make"),
        ("nets/small.py", "; write nets.small:name"),
        ("nets", "; write nets:name"),
        ("nets:", "; write nets:name"),
        (":make", ""),
        ("a b:make", ""),
        ("a:b:c", ""),
        ("..a:b", "; write a:b"),
        ("", ""),
    ],
)
def test_another_form_is_one_sentence_with_the_right_one(reference, better):
    assert not is_reference(reference) or reference == "nets.py:make"
    with pytest.raises(InputDataError) as error:
        resolve(reference, "model")
    expected = f"Expected the model as package.module:name, got {reference!r}{better}."
    assert str(error.value) == expected


@pytest.mark.parametrize(
    "budget",
    [
        0.5,
        "0.5",
        "macs=0.5",
        {"macs": 0.5},
        {"macs": [0.0, 0.5]},
        {"macs": "1/2"},
        Budget(macs=0.5),
    ],
)
def test_a_task_takes_its_budget_in_every_form(budget):
    env = gymnasium.make("amc_env:amc/synthetic-v0", budget=budget)
    assert env.unwrapped.budget == Budget(macs=0.5)
    _, _ = env.reset(options={"budget": budget})
    assert env.unwrapped.budget == Budget(macs=0.5)
    if not isinstance(budget, Budget):
        spec = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json())
        assert spec.make().unwrapped.budget == Budget(macs=0.5)


@pytest.mark.parametrize(
    "budget",
    [True, [0.5], {}, {"macs": None}, {"macs": [1, 2, 3]}, {"macs": [0.1, "a"]}, {3: 0.5}, 0, -1,
     2.0, float("nan"), "", "x", {"macs": "x"}, {"macs": {"a": 1}}, {"macs": True}, object()],
)  # fmt: skip
def test_no_other_budget_is_taken(budget):
    with pytest.raises(ValueError, match="Expected"):
        gymnasium.make("amc_env:amc/synthetic-v0", budget=budget)


def test_a_task_takes_rewards_and_costs_of_the_users_own(module):
    env = gymnasium.make(
        "amc_env:amc/synthetic-bits-v0",
        budget={"energy": 0.6},
        reward=f"{module}:half",
        cost_models={"energy": f"{module}:Energy"},
    )
    again = gymnasium.envs.registration.EnvSpec.from_json(env.spec.to_json()).make()
    for bare in (env.unwrapped, again.unwrapped):
        outcome = bare.evaluate(bare.uniform_plan())
        assert outcome.reward == pytest.approx(0.5 * outcome.score)
        assert outcome.cost_ratio["energy"] <= 0.6
        assert bare.costs["energy"].given == (bare.graph, bare.learner.storage)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("reward", "text", "to return a finite number, got 'good'"),
        ("reward", "value", "to be a function of an amc_env.Result, got 3"),
        ("reward", "Outer", "to be a function of an amc_env.Result"),
        ("reward", "hafl", "has no 'hafl'; did you mean 'half'"),
        ("cost", "Nothing", "to return a finite number of at least 0, got None"),
        ("cost", "no_cost", "to make an amc_env.CostModel, got int"),
        ("cost", "half", "to take the graph and the decisions: too many"),
        ("cost", "value", "got int"),
    ],
)
def test_what_is_no_reward_or_cost_is_said(module, kind, name, message):
    reference = f"{module}:{name}"
    options = {"reward": reference} if kind == "reward" else {"cost_models": {"own": reference}}
    with pytest.raises((InputDataError, EvaluationError), match=message):
        gymnasium.make("amc_env:amc/synthetic-v0", **options)


def test_other_rewards_are_unknown():
    for reward in ("joy", "a.b", 3, ["accuracy"]):
        with pytest.raises(ValueError, match=r"Unknown reward .*package.module:name"):
            resolve_reward(reward)
