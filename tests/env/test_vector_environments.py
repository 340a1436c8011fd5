"""What Gymnasium's vector environments make of the tasks, in each way of starting again."""

from __future__ import annotations

import gymnasium as gym
import numpy as np
import pytest

from amc_env import CompressionVectorEnv
from amc_env.scores.evaluations import InProcess

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


class Counted(InProcess):
    """Notes how many plans are submitted at a time."""

    def __init__(self, learner):
        super().__init__(learner)
        self.counts = []

    def submit(self, plans, *, whole_split=False):
        self.counts.append(len(plans))
        super().submit(plans, whole_split=whole_split)


@pytest.mark.parametrize("mode", modes)
def test_plans_evaluated_together_change_nothing_else(mode):
    env = gym.make(TASK)
    service = env.unwrapped.scores.service = Counted(env.unwrapped.learner)
    bare = [lambda: gym.make(TASK).unwrapped] * 4
    apart = gym.vector.SyncVectorEnv(bare, autoreset_mode=mode)
    together = CompressionVectorEnv(env, 4, autoreset_mode=mode)
    options = {"options": {"budget": "macs=0.4"}} if mode is modes.DISABLED else {}
    assert repr(apart.reset(seed=0, **options)) == repr(together.reset(seed=0, **options))
    rng = np.random.default_rng(0)
    n_episodes = 1 if mode is modes.DISABLED else 2
    for _ in range(n_episodes * LENGTH + (2 if n_episodes > 1 else 0)):
        actions = rng.random((4, 1), dtype=np.float32)
        actions[1] = actions[0]
        for one, other in zip(apart.step(actions), together.step(actions), strict=True):
            assert repr(one) == repr(other)
    assert service.counts == [3] * n_episodes
    assert together.problem.n_evaluations == 3 * n_episodes


def test_other_environments_and_none_at_all_are_rejected():
    with pytest.raises(TypeError, match="Expected a CompressionEnv, got CartPole"):
        CompressionVectorEnv(gym.make("CartPole-v1"), 2)
    with pytest.raises(ValueError, match="num_envs >= 1"):
        CompressionVectorEnv(gym.make(TASK), 0)


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_actions_is_rejected(count):
    envs = CompressionVectorEnv(gym.make(TASK), 2)
    envs.reset(seed=0)
    with pytest.raises(ValueError, match=f"Expected 2 actions, one for each episode, got {count}"):
        envs.step([[0.5]] * count)
