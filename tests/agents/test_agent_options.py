"""Options of agents: their types are checked, wherever they come from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from amc_compress.agents import DDPG, agent_from_label, make_agent
from amc_compress.agents.registry import read_label
from amc_env.errors import InputDataError


@pytest.mark.parametrize(
    ("label", "message"),
    [
        ("ddpg:one_shot=no", "one_shot to be true or false, got 'no'"),
        ("ddpg:centre_rewards=1", "centre_rewards to be true or false, got 1"),
        ("ddpg:hidden=12.5", "hidden to be a whole number, got 12.5"),
        ("ddpg:hidden=true", "hidden to be a whole number, got True"),
        ("ddpg:sigma=NaN", "sigma to be a number, got nan"),
        ("ddpg:prior=3", "prior to be"),
        ("ddpg-sensitivity:points=few", "points to be a whole number, got 'few'"),
        ("ddpg-sensitivity:sigma=much", "sigma to be a number, got 'much'"),
        ("local:max_step=abc", "max_step to be a number, got 'abc'"),
        ("gradient:finalists=1.5", "finalists to be a whole number, got 1.5"),
        ("ddpg:options=3", "Unknown option"),
    ],
)
def test_an_option_of_another_type_is_rejected(label, message):
    with pytest.raises(ValueError, match=message):
        agent_from_label(label)


def test_words_may_look_like_numbers():
    agent = agent_from_label("tpe:study=2024,worker=01,storage=journal:a")[0]
    settings = agent.hyperparameters()
    assert (settings["study"], settings["worker"]) == ("2024", "01")
    with pytest.raises(ValueError, match="objectives to be a word, got 1"):
        make_agent("nsga2", objectives=1)


def test_numbers_of_numpy_are_numbers_and_paths_are_words():
    agent = DDPG(hidden=np.int64(32), sigma=np.float32(0.25), centre_rewards=np.bool_(False))
    assert agent.hyperparameters()["hidden"] == 32
    with pytest.raises(InputDataError, match="file of a policy"):  # it was looked for
        make_agent("ddpg", policy=Path("p.safetensors"))
    assert make_agent("local", max_step=1).hyperparameters()["max_step"] == 1


@pytest.mark.parametrize(("text", "value"), [("True", True), ("true", True), ("False", False)])
def test_flags_may_be_spelled_as_python_does(text, value):
    assert read_label(f"ddpg:opening={text}")[1] == {"opening": value}
