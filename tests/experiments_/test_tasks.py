"""The ready-made tasks, through Gymnasium only."""

from __future__ import annotations

import subprocess
import sys

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.utils.env_checker import check_env

from amc_env import CompressionPlan

ID = "amc_env:amc/digits-channels-v0"


@pytest.fixture(scope="module")
def env():
    return gym.make(ID)


def rollout(env, actions):
    env.reset(seed=0)
    for action in actions:
        step = env.step(np.array([action], dtype=np.float32))
    return step


def test_the_digits_task_passes_the_checker(env):
    check_env(env.unwrapped)


def test_an_episode_ends_by_termination_within_the_budget(env):
    _, reward, terminated, truncated, info = rollout(env, [0.6] * env.unwrapped.n_decisions)
    assert terminated
    assert not truncated
    assert info["cost_ratio"]["macs"] <= 0.3
    plan = CompressionPlan(info["plan"])
    assert reward == info["accuracy"] == env.unwrapped.evaluate(plan).accuracy


def test_the_spec_round_trips_through_json_to_the_same_rollout(env):
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    again = gym.make(spec)
    actions = np.random.default_rng(1).random(env.unwrapped.n_decisions)
    first, second = rollout(env, actions), rollout(again, actions)
    assert first[1] == second[1]
    assert first[4]["plan"] == second[4]["plan"]


def test_the_uniform_plan_beats_what_cutting_at_random_gives(env):
    bare = env.unwrapped
    uniform = bare.evaluate(bare.uniform_plan()).accuracy
    rng = np.random.default_rng(0)
    random = [bare.evaluate(bare.decode(rng.random(bare.n_decisions))).accuracy for _ in range(5)]
    assert uniform > np.mean(random) + 0.1


def test_an_unknown_option_is_refused():
    with pytest.raises(TypeError, match="nonsense"):
        gym.make(ID, nonsense=1)


def test_a_network_without_shipped_weights_says_how_to_make_some():
    with pytest.raises(ValueError, match="amc train --model lenet --data digits"):
        gym.make("amc_env:amc/channels-v0", model="lenet")


def test_importing_the_environment_package_imports_no_learner_and_no_agent():
    code = (
        "import sys, amc_env; "
        "print([m for m in ('learners', 'agents', 'experiments', 'stable_baselines3') "
        "if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_making_a_task_leaves_the_global_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    gym.make(ID)
    assert torch.equal(torch.rand(3), expected)
