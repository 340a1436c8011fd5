"""What Gymnasium's vector environments make of the tasks, in each way of starting again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

TASK = "amc_env:amc/synthetic-v0"
LENGTH = 12
modes = pytest.importorskip("gymnasium", minversion="1.1").vector.AutoresetMode


def make_envs(mode, num_envs=3, vectorization="sync"):
    envs = gym.make_vec(
        TASK, num_envs, vectorization_mode=vectorization, vector_kwargs={"autoreset_mode": mode}
    )
    envs.action_space.seed(0)
    return envs


def play(envs, steps):
    for _ in range(steps):
        step = envs.step(envs.action_space.sample())
    return step


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_same_step_gives_the_final_info_and_the_next_episodes_start(vectorization):
    envs = make_envs(modes.SAME_STEP, vectorization=vectorization)
    start, _ = envs.reset(seed=0)
    observations, rewards, terminated, truncated, infos = play(envs, LENGTH)
    assert terminated.all()
    assert not truncated.any()
    assert np.array_equal(observations, start)
    assert not np.stack(infos["final_obs"]).any()  # all zeros after the last decision
    final = infos["final_info"]
    assert final["accuracy"] == pytest.approx(rewards)
    assert np.all(final["cost_ratio"]["macs"] <= 0.5)
    plan_keys = [key for key in final["plan"] if not key.startswith("_")]
    assert len(plan_keys) == LENGTH
    assert "accuracy" not in infos
    envs.close()


def test_next_step_spends_a_step_on_the_reset_that_is_no_transition():
    envs = make_envs(modes.NEXT_STEP)
    start, _ = envs.reset(seed=0)
    observations, rewards, terminated, _, infos = play(envs, LENGTH)
    assert terminated.all()
    assert not observations.any()
    assert infos["accuracy"] == pytest.approx(rewards)
    observations, rewards, terminated, _, infos = play(envs, 1)  # its actions are ignored
    assert np.array_equal(observations, start)
    assert not rewards.any()
    assert not terminated.any()
    assert "executed_action" not in infos


def test_without_autoreset_the_caller_resets_and_may_change_the_budget():
    envs = make_envs(modes.DISABLED)
    envs.reset(seed=0)
    play(envs, LENGTH)
    everyone = np.ones(3, dtype=np.bool_)
    envs.reset(options={"reset_mask": everyone, "budget": "macs=0.3"})
    infos = play(envs, LENGTH)[-1]
    assert np.all(infos["cost_ratio"]["macs"] <= 0.3)


def test_copies_are_independent_and_equal_actions_give_equal_plans():
    envs = make_envs(modes.SAME_STEP, num_envs=2)
    envs.reset(seed=0)
    for step in range(LENGTH):
        request = 0.2 + 0.6 * (step % 2)
        infos = envs.step(np.array([[request], [request]], dtype=np.float32))[-1]
    accuracy = infos["final_info"]["accuracy"]
    assert accuracy[0] == accuracy[1]
    for _ in range(LENGTH):
        infos = envs.step(np.array([[request], [0.5]], dtype=np.float32))[-1]
    assert np.diff(infos["final_info"]["accuracy"]) != 0
