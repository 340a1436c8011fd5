"""Policies that are kept, carried to another network, and trained for every budget at once."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest

from amc_compress.agents import DDPG, TD3, AgentError, OnePolicy
from amc_compress.agents.actor_critic.one_policy import BudgetLine
from amc_env import Budget
from amc_env.errors import InputDataError
from amc_env.recorded_tasks.synthetic import make_synthetic

QUICK = {"warmup_episodes": 4, "hidden": 32, "updates_per_episode": 1}
BUDGETS = ["macs=0.3", "macs=0.45", "macs=0.6"]


@pytest.fixture
def saved(tmp_path):
    agent = DDPG(**QUICK)
    agent.search(make_synthetic(6, 3), 15, seed=0)
    agent.save_policy(tmp_path / "policy.safetensors")
    return agent, tmp_path / "policy.safetensors"


class TestSavedPolicies:
    def test_the_first_episode_is_what_the_saved_policy_would_do(self, saved):
        agent, path = saved
        env = make_synthetic(9, 5)  # another network, more decisions
        result = DDPG(policy=str(path), **QUICK).search(env, 2, seed=1)
        observation, _ = env.reset()
        terminated = False
        while not terminated:
            action, _ = agent.model.predict(observation, deterministic=True)
            observation, _, terminated, _, info = env.step(action)
        assert [t.source for t in result.trials] == ["uniform", "policy"]
        assert dict(result.trials[1].plan) == info["plan"]

    def test_there_is_no_warm_up(self, saved):
        result = DDPG(policy=str(saved[1]), **QUICK).search(make_synthetic(6, 3), 10, seed=1)
        assert "warm-up" not in {t.source for t in result.trials}

    def test_rewards_stay_on_the_scale_they_were_learned_on(self, saved):
        agent, path = saved
        again = DDPG(policy=str(path), **QUICK)
        again.search(make_synthetic(6, 3), 8, seed=1)
        expected = agent.model.replay_buffer.reward_scale
        assert again.model.replay_buffer.reward_scale == pytest.approx(expected)

    def test_a_policy_of_another_kind_is_rejected(self, saved):
        path = str(saved[1])
        with pytest.raises(AgentError, match="does not fit"):
            TD3(policy=path, **QUICK).search(make_synthetic(6, 3), 5, seed=0)
        with pytest.raises(AgentError, match="does not fit"):
            DDPG(policy=path, **QUICK | {"hidden": 16}).search(make_synthetic(6), 5, seed=0)
        with pytest.raises(AgentError, match="kinds of decisions"):
            DDPG(policy=path, **QUICK).search(make_synthetic(4, kind="bits"), 5, seed=0)

    def test_files_that_are_none_are_rejected_before_any_work(self, saved, tmp_path):
        with pytest.raises(InputDataError, match=r"missing\.safetensors is none"):
            DDPG(policy=str(tmp_path / "missing.safetensors"))
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(saved[1].read_bytes()[:200])
        with pytest.raises(InputDataError, match="damaged or cut short"):
            DDPG(policy=str(cut))
        import safetensors.torch
        import torch

        other = tmp_path / "other.safetensors"
        safetensors.torch.save_file({"x": torch.zeros(1)}, other)
        with pytest.raises(InputDataError, match="policy of version"):
            DDPG(policy=str(other))

    def test_nothing_can_be_saved_before_a_search(self, tmp_path):
        with pytest.raises(ValueError, match="before the first search"):
            DDPG().save_policy(tmp_path / "x.safetensors")


class TestBudgetLine:
    def test_places_between_two_budgets_are_between_them(self):
        line = BudgetLine([Budget(macs=0.6), Budget(macs=0.2), Budget(macs=(0.1, 0.4))])
        assert [str(line.at(p)) for p in (0, 1, 2)] == ["macs=0.2", "macs=0.1:0.4", "macs=0.6"]
        assert line.at(0.5).bounds["macs"] == pytest.approx((0.05, 0.3))
        assert line.at(1.5).bounds["macs"] == pytest.approx((0.05, 0.5))

    @pytest.mark.parametrize(
        "budgets", [[], [Budget(macs=0.5)], [Budget(macs=0.5), Budget(bytes=0.5)]]
    )
    def test_budgets_must_be_several_and_of_the_same_costs(self, budgets):
        with pytest.raises(ValueError, match="two or more different budgets"):
            BudgetLine(budgets)


@cache
def searched():
    """An environment, and what a search for all budgets found in it."""
    env = make_synthetic(6, 3)
    return env, OnePolicy(**QUICK).search(env, BUDGETS, 40, 0)


class TestOnePolicy:
    def search(self, seed=0, **options):
        env = make_synthetic(6, 3)
        return env, OnePolicy(**QUICK | options).search(env, BUDGETS, 40, seed)

    def test_every_budget_gets_a_plan_within_it_and_none_below_uniform(self):
        env, front = searched()
        for budget, trial in front.best.items():
            assert budget.is_met(env.cost_ratio(trial.plan))
            assert trial.reward >= front.uniform[budget].reward
            assert trial.reward >= front.policy[budget].reward

    def test_episodes_are_spent_exactly_and_budgets_are_drawn_anew(self):
        _, front = searched()
        assert len(front.trials) == 40
        costs = np.array([t.cost_ratio["macs"] for t in front.trials])
        assert (costs < 0.3).sum() > 3
        assert ((costs > 0.3) & (costs < 0.45)).sum() > 3
        assert ((costs > 0.45) & (costs <= 0.6)).sum() > 3

    def test_without_budgets_between_only_those_asked_for_are_played(self):
        _, front = self.search(between=0.0)
        costs = np.array([t.cost_ratio["macs"] for t in front.trials])
        nearest = np.array([min(b for b in (0.3, 0.45, 0.6) if b >= c) for c in costs])
        assert np.median(nearest - costs) < 0.02

    def test_the_last_episodes_are_the_bare_policy_at_each_budget(self):
        env, front = searched()
        agent = front.agent
        for budget, trial in front.policy.items():
            observation, _ = env.reset(options={"budget": budget})
            terminated = False
            while not terminated:
                action, _ = agent.model.predict(observation, deterministic=True)
                observation, _, terminated, _, info = env.step(action)
            played = front.trials[-3:]
            assert trial in played
            # The policy of the last budget has learned from the one or two before it.
            assert set(info["plan"]) == set(trial.plan)

    def test_same_seed_gives_the_same_trials_and_leaves_the_budget_alone(self):
        env, one = self.search(seed=4)
        _, two = self.search(seed=4)
        assert [t.plan for t in one.trials] == [t.plan for t in two.trials]
        assert env.budget == Budget(macs=0.5)

    def test_the_policy_can_be_kept_and_used_at_another_budget(self, tmp_path):
        _, front = searched()
        front.agent.save_policy(tmp_path / "p.safetensors")
        env = make_synthetic(6, 3, budget="macs=0.5")
        result = DDPG(policy=str(tmp_path / "p.safetensors"), **QUICK).search(env, 2, seed=0)
        assert result.trials[1].source == "policy"

    def test_too_few_episodes_are_rejected(self):
        with pytest.raises(ValueError, match="at least 9 episodes"):
            OnePolicy().search(make_synthetic(4), BUDGETS, 8, seed=0)

    def test_one_shot_has_no_state_to_see(self):
        with pytest.raises(ValueError, match="one action per decision"):
            OnePolicy(one_shot=True)
