"""One action is a whole plan: rescaled until it meets the budget, and nothing else changes."""

from __future__ import annotations

from functools import partial
from itertools import product

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as check_for_sb3

from amc_env import CompressionPlan, OneShotEnv
from amc_env.one_shot import fits, positions, rescale
from amc_env.recorded_tasks.synthetic import make_synthetic

MAKERS = [partial(make_synthetic, kind=kind) for kind in ("channels", "bits", "joint", "density")]


def random_plans(env, n: int, seed: int = 0) -> list[CompressionPlan]:
    rng = np.random.default_rng(seed)
    return [rescale(env, rng.random(env.n_decisions)) for _ in range(n)]


@pytest.mark.parametrize("maker", MAKERS)
def test_every_rescaled_plan_meets_the_budget_and_leaves_no_step_unspent(maker):
    env = maker(n_layers=6)
    for plan in random_plans(env, 25):
        values = plan.values_for(env.decisions)
        assert env.budget.is_met(env.cost_ratio(plan))
        for i, decision in enumerate(env.decisions):
            higher = [c for c in decision.choices if c > values[i]]
            if higher:
                raised = np.array([*values[:i], higher[0], *values[i + 1 :]])
                assert not fits(env, raised)


@pytest.mark.parametrize("maker", MAKERS)
def test_only_the_proportions_of_the_requests_matter(maker):
    env = maker(n_layers=6)
    requests = np.random.default_rng(1).uniform(0.2, 1.0, env.n_decisions)
    plan = rescale(env, requests)
    assert rescale(env, 0.5 * requests) == plan
    assert rescale(env, 0.01 * requests) == plan


@pytest.mark.parametrize("maker", MAKERS)
def test_the_positions_of_a_rescaled_plan_mean_that_plan(maker):
    env = maker(n_layers=6)
    for plan in random_plans(env, 25):
        assert rescale(env, positions(env, plan)) == plan


def test_the_multiplier_is_the_one_a_fine_scan_finds():
    """Values before rounding are m x requests for the largest m that fits."""
    env = make_synthetic(n_layers=4, seed=2)
    requests = np.array([0.9, 0.3, 0.6, 0.5])
    lowest = np.array([d.choices[0] for d in env.decisions])
    scan = [
        m for m in np.linspace(0.0, 4.0, 40_001) if fits(env, np.clip(m * requests, lowest, 1.0))
    ]
    exact = np.clip(max(scan) * requests, lowest, 1.0)
    plan = rescale(env, requests).values_for(env.decisions)
    for decision, value, request in zip(env.decisions, plan, exact, strict=True):
        below = max(c for c in decision.choices if c <= request + 1e-3)
        assert value >= below  # rounded down, then perhaps raised by what rounding left over


def test_equal_requests_spend_what_the_uniform_plan_spends_or_more():
    env = make_synthetic(n_layers=8, seed=1)
    plan = rescale(env, np.full(8, 0.3))
    uniform = env.cost_ratio(env.uniform_plan())["macs"]
    assert env.cost_ratio(plan)["macs"] >= uniform - 0.02


def test_requests_of_nothing_and_of_everything_are_plans():
    env = make_synthetic(n_layers=5, seed=1)
    for requests in (np.zeros(5), np.ones(5), np.array([1.0, 0, 0, 0, 0])):
        assert env.budget.is_met(env.cost_ratio(rescale(env, requests)))


def test_a_lower_bound_is_met_too():
    env = make_synthetic(n_layers=6, seed=3, budget="macs=0.48:0.5")
    for plan in random_plans(env, 20):
        assert 0.48 <= env.cost_ratio(plan)["macs"] <= 0.5


def test_small_problems_reach_every_plan_that_spends_the_budget():
    """No plan without a step to spare is out of reach: its own positions mean it."""
    env = make_synthetic(n_layers=3, seed=1)
    whole = list(product(*(d.choices for d in env.decisions)))
    full = [
        v
        for v in whole
        if fits(env, np.array(v))
        and not any(
            fits(env, np.array([*v[:i], c, *v[i + 1 :]]))
            for i, d in enumerate(env.decisions)
            for c in d.choices
            if c > v[i]
        )
    ]
    assert len(full) > 20
    for values in full:
        plan = CompressionPlan.from_values(env.decisions, values)
        assert rescale(env, positions(env, plan)) == plan


class TestOneShotEnv:
    def make(self, **options) -> OneShotEnv:
        return OneShotEnv(make_synthetic(n_layers=5, seed=3, **options))

    def test_passes_both_environment_checkers(self):
        with pytest.warns(UserWarning, match="different from the unwrapped version"):
            check_env(self.make(), skip_render_check=True)
        with pytest.warns(UserWarning, match="symmetric"):
            check_for_sb3(self.make())

    def test_takes_the_environment_as_gymnasium_makes_it(self):
        env = OneShotEnv(gym.make("amc_env:amc/synthetic-v0", n_layers=5))
        assert env.action_space.shape == (5,)

    def test_one_step_evaluates_the_rescaled_plan(self):
        env = self.make()
        observation, _ = env.reset(seed=0)
        requests = np.linspace(0.2, 1.0, 5, dtype=np.float32)
        terminal, reward, terminated, truncated, info = env.step(requests)
        plan = rescale(env.problem, requests)
        assert CompressionPlan(info["plan"]) == plan
        assert reward == env.problem.evaluate(plan).reward == info["accuracy"]
        assert terminated
        assert not truncated
        np.testing.assert_array_equal(info["executed_action"], positions(env.problem, plan))
        np.testing.assert_allclose(observation, [0.5])
        assert not terminal.any()

    def test_the_budget_of_an_episode_is_in_the_observation(self):
        env = self.make()
        observation, _ = env.reset(options={"budget": "macs=0.3"})
        np.testing.assert_allclose(observation, [0.3])

    def test_a_budget_of_other_costs_does_not_fit_the_observation(self):
        with pytest.raises(ValueError, match="1 costs"):
            self.make().reset(options={"budget": "macs=0.5,bytes=0.5"})

    @pytest.mark.parametrize("bad", [np.full(5, np.nan), np.full(5, 1.5), np.zeros(4), None])
    def test_senseless_actions_are_rejected(self, bad):
        env = self.make()
        env.reset()
        with pytest.raises((InvalidAction, TypeError), match=r"5 numbers|float"):
            env.step(bad)

    def test_a_step_needs_a_reset_before(self):
        env = self.make()
        with pytest.raises(ResetNeeded):
            env.step(np.zeros(5, dtype=np.float32))
        env.reset()
        env.step(np.zeros(5, dtype=np.float32))
        with pytest.raises(ResetNeeded):
            env.step(np.zeros(5, dtype=np.float32))

    def test_other_environments_are_rejected(self):
        with pytest.raises(TypeError, match="CompressionEnv"):
            OneShotEnv(gym.make("Pendulum-v1"))


def test_a_trajectory_is_what_an_episode_shows_and_does():
    env = make_synthetic(kind="joint", n_layers=5, seed=1)
    plan = random_plans(env, 1)[0]
    observations, actions = env.trajectory(plan)
    seen, _ = env.reset()
    for expected, action in zip(observations, actions, strict=True):
        np.testing.assert_array_equal(seen, expected)
        seen, _, terminated, _, info = env.step(np.array([action], dtype=np.float32))
    assert terminated
    assert CompressionPlan(info["plan"]) == plan


def test_asking_for_a_trajectory_disturbs_no_episode():
    env = make_synthetic(n_layers=4, seed=1)
    env.reset()
    env.step(np.array([0.3], dtype=np.float32))
    env.trajectory(env.uniform_plan())
    for _ in range(3):
        _, _, terminated, _, _ = env.step(np.array([0.5], dtype=np.float32))
    assert terminated
