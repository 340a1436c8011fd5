"""Labels of agents: what may be asked for of the environment without changing the problem."""

from __future__ import annotations

import pytest

from amc_compress.comparison.labels import EnvOptions, env_options, parse_label
from amc_env import Budget


def test_options_of_agent_and_environment_are_told_apart():
    agent, requests = parse_label("random:finalists=0,env.action=interval,env.budget=macs=0.27:0.3")
    assert agent.name == "random"
    assert requests == EnvOptions("interval", {"macs": (0.27, 0.3)})
    assert parse_label("random")[1] == EnvOptions()


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("uniform:env.bugdet=1", r"env.action, env.budget or env.staged .* got env.bugdet"),
        ("uniform:env.reward=haq", "got env.reward; everything else would be another problem"),
        ("uniform:env.action=sideways", "one of absolute, interval, centred, got 'sideways'"),
        ("uniform:env.budget=half", "Expected a budget like"),
        ("uniform:env.budget=macs=1.5", "a ratio of 0.5 means"),
        ("uniform:env.budget", "Expected a"),
    ],
)
def test_requests_that_are_unknown_or_another_problem_are_rejected(label, message):
    with pytest.raises(ValueError, match=message):
        parse_label(label)


@pytest.mark.parametrize(
    "label", ["tpe:storage=journal:a.log", "cmaes:study=mine", "tpe:worker=1", "ddpg:policy=p.npz"]
)
def test_searches_that_would_know_of_others_are_rejected(label):
    with pytest.raises(ValueError, match=rf"know nothing of each other, got '{label}'"):
        parse_label(label)


def test_what_an_agent_of_the_users_calls_a_policy_is_its_own_affair(tmp_path, monkeypatch):
    source = """
from amc_compress.agents import Agent

class Mine(Agent):
    name = "mine"

    def __init__(self, *, policy: str = "") -> None:
        super().__init__()
        self.policy = policy

    def run(self, search):
        search.uniform()
"""
    (tmp_path / "agents_with_policies.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    assert parse_label("agents_with_policies.Mine:policy=cnn")[0].policy == "cnn"


def test_a_budget_may_only_be_narrowed():
    task = Budget(macs=0.3, bytes=(0.1, 0.2))
    for request, narrowed in (
        ("macs=0.27:0.3", Budget(macs=(0.27, 0.3), bytes=(0.1, 0.2))),
        ("macs=0.2", Budget(macs=0.2, bytes=(0.1, 0.2))),
        ("bytes=0.1:0.15", Budget(macs=0.3, bytes=(0.1, 0.15))),
        ("params=0.5", Budget(macs=0.3, bytes=(0.1, 0.2), params=0.5)),
    ):
        assert env_options(f"local:env.budget={request}").within(task) == narrowed
    for request in ("macs=0.31", "bytes=0.2", "bytes=0.1:0.3"):
        with pytest.raises(ValueError, match=r"within the task's bytes=0.1:0.2,macs=0.3"):
            env_options(f"local:env.budget={request}").within(task)
    with pytest.raises(ValueError, match=r"one of macs, bytes, params.*got 'speed'"):
        env_options("local:env.budget=speed=0.5").within(task)


def test_a_label_asks_for_stages():
    assert parse_label("local:env.staged=True")[1] == EnvOptions(staged=True)
    both = parse_label("local:env.staged=True,env.budget=macs=0.4")[1]
    assert both == EnvOptions(None, {"macs": (0.0, 0.4)}, True)
    with pytest.raises(ValueError, match="True or False, got 'yes'"):
        parse_label("local:env.staged=yes")
