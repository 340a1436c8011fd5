"""Agents of the user, named by the path of their class."""

from __future__ import annotations

import sys
from pathlib import Path

import gymnasium
import pytest

from amc_compress.agents import agent_from_label, make_agent
from amc_compress.agents.registry import read_label
from amc_compress.agents.testing import AgentContract
from amc_compress.cli import run
from amc_compress.commands.compare import _agents
from amc_compress.comparison.records import RESULTS, read_results
from amc_compress.examples.own_agent import CrossEntropy

SOURCE = """
from typing import Any

from amc_compress.agents import Agent, make_agent

class Mine(Agent):
    name = "mine"
    deterministic = True

    def __init__(self, *, times: int = 1) -> None:
        super().__init__()
        self.times = times

    def run(self, search):
        search.uniform()

class Annotated(Mine):
    def __init__(self, *, other: "Nowhere" = None) -> None:
        super().__init__()

class Nameless(Agent):
    def run(self, search):
        search.uniform()

class Halfway(Agent):
    name = "halfway"

class Forgetful(Agent):
    name = "forgetful"

    def __init__(self) -> None:
        pass

    def run(self, search):
        search.uniform()

class Broken(Mine):
    def __init__(self) -> None:
        {}["key"]

class Leaving(Mine):
    def run(self, search):
        raise SystemExit(0)

class Loose(Mine):
    def __init__(self, *, times="auto", policy: Any = None, **options: Any) -> None:
        super().__init__()
        self.given = (times, policy, options)

class NoAgent:
    pass

def made():
    return make_agent("local", max_step=0.2)

def nothing():
    return None

value = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module in the current directory, which is not on the path."""
    (tmp_path / "my_agents.py").write_text(SOURCE)
    (tmp_path / "broken_agents.py").write_text("1 / 0\n")
    (tmp_path / "leaving_agents.py").write_text("raise SystemExit(0)\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    monkeypatch.delitem(sys.modules, "my_agents", raising=False)
    return "my_agents"


class TestCrossEntropy(AgentContract):
    """The example keeps what all agents keep."""

    def make(self, **options: int) -> CrossEntropy:
        return CrossEntropy(batch=4, **options)


def test_a_class_is_found_by_its_path(module):
    agent, others = agent_from_label(f"{module}.Mine:times=2,env.action=interval", "env.")
    assert (agent.name, agent.hyperparameters()["times"]) == ("mine", 2)
    assert others == {"action": "interval"}
    env = gymnasium.make("amc_env:amc/synthetic-v0")
    assert len(agent.search(env, 5, seed=0).trials) == 1


def test_annotations_that_mean_nothing_outside_of_their_file_are_no_obstacle(module):
    assert make_agent(f"{module}.Annotated", other=3).name == "mine"


def test_a_function_that_returns_an_agent_will_do(module):
    assert make_agent(f"{module}.made").hyperparameters()["max_step"] == 0.2


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("nowhere.Mine", r"'nowhere' of .* 'nowhere' on the Python path.*package.module:name"),
        ("nowhere:Mine", r"'nowhere' of .* 'nowhere' on the Python path.*package.module:name"),
        ("my_agent:Mine", "'my_agent' on .* did you mean 'my_agents'"),
        ("my_agents.Yours", "'my_agents' .* has no 'Yours'"),
        ("my_agents:Main", "'my_agents' .* has no 'Main'; did you mean 'Mine'"),
        ("my_agents.NoAgent", "Expected .* a subclass of amc_compress.agents.Agent"),
        ("my_agents.value", "value = 3"),
        ("my_agents.nothing", "to return an amc_compress.agents.Agent, got None"),
        ("my_agents.Nameless", 'to have a name, as in name = "mine", got None'),
        ("my_agents.Mine:times=few", "times to be a whole number, got 'few'"),
        ("my_agents.Mine:speed=1", "does not take these options"),
        ("my_agents.Halfway", "Halfway to implement run"),
        ("my_agents.Forgetful", r"to call super\(\).__init__\(\)"),
        ("my_agents:Mine:speed=1", "does not take these options"),
        ("mine", "package.module:name for your own"),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_makes_no_agent_is_rejected(label, message):
    with pytest.raises(ValueError, match=message):
        agent_from_label(label)


@pytest.mark.parametrize(
    ("label", "error"),
    [
        ("broken_agents:Mine", ZeroDivisionError),
        ("leaving_agents.Mine", SystemExit),
        ("my_agents:Broken", KeyError),
    ],
)
@pytest.mark.usefixtures("module")
def test_what_its_code_raises_is_not_hidden(label, error):
    with pytest.raises(error):
        agent_from_label(label)


def test_the_syntax_of_all_references_and_the_older_one_mean_the_same(module):
    for label in (f"{module}:Mine:times=2", f"{module}.Mine:times=2"):
        assert agent_from_label(label)[0].hyperparameters()["times"] == 2
        assert read_label(label)[1] == {"times": 2}
    assert read_label(" a.b:Mine ") == ("a.b:Mine", {})
    assert _agents([f"a:B,{module}:Mine:x=1,y=journal:f.log,local", "tpe:seed=1"]) == [
        "a:B",
        f"{module}:Mine:x=1,y=journal:f.log",
        "local",
        "tpe:seed=1",
    ]


def test_what_is_not_annotated_plainly_may_be_anything(module):
    agent = make_agent(f"{module}.Loose", times="often", policy=3, other=[])
    assert agent.given == ("often", 3, {"other": []})


def test_the_current_directory_hides_no_package(module):
    make_agent(f"{module}.Mine")
    assert sys.path[-1] == str(Path.cwd())


@pytest.mark.slow
def test_it_is_compared_with_others_in_processes_of_their_own(module, tmp_path):
    out = tmp_path / "out"
    arguments = ["compare", "--task", "digits-channels-recorded", "--seeds", "2"]
    arguments += ["--agent", f"{module}.Mine,{module}.Leaving,local", "--evaluations", "4"]
    assert run([*arguments, "--workers", "2", "--out", str(out), "--quiet"]) == 1
    searches = read_results(out / RESULTS).searches
    found = {(s.agent, s.deterministic): s.error for s in searches}
    exit_call = f"The code of the agent '{module}:Leaving' ended the process with sys.exit(0) ("
    assert found.pop((f"{module}.Leaving", None)).startswith(exit_call)
    assert found == {(f"{module}.Mine", True): None, ("local", False): None}
    assert len(searches) == 6
    assert "my_agents.Mine" in (out / "report.html").read_text()
