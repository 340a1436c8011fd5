"""Episodes of an actor-critic side by side: rounds, what is stored, and what is proposed."""

import numpy as np
import pytest
from gymnasium import spaces

from amc_compress.agents import DDPG, OneShotDDPG, RandomSearch
from amc_compress.agents.actor_critic.buffers import (
    BroadcastBuffer,
    ExecutedActionBuffer,
    MonteCarloBuffer,
)
from amc_compress.agents.actor_critic.exploration import Exploration, Proposals
from amc_compress.agents.rollout import Search
from amc_compress.agents.testing.contract import make_env, watch

QUICK = {"warmup_episodes": 3, "hidden": 16, "updates_per_episode": 1}
LENGTH = 3


def filled(buffer_type, rewards, lanes, **options):
    """A buffer with an episode per reward, ``lanes`` of them side by side; sees its own place."""
    seen = spaces.Box(0, 1e6, (1,), np.float32)
    acts = spaces.Box(0, 1, (1,), np.float32)
    buffer = buffer_type(len(rewards) * LENGTH, seen, acts, "cpu", n_envs=lanes, **options)
    for first in range(0, len(rewards), lanes):
        mine = np.arange(first, first + lanes)
        for step in range(LENGTH):
            is_last = step == LENGTH - 1
            buffer.add(
                (10.0 * mine + step)[:, None],
                (10.0 * mine + step + 1)[:, None],
                np.zeros((lanes, 1)),
                np.array(rewards)[mine] * is_last,
                np.full(lanes, is_last),
                [{"executed_action": np.array([(10 * i + step) / 100], np.float32)} for i in mine],
            )
    return buffer


def contents(buffer):
    """Everything that can be sampled, by what was seen."""
    rows = np.repeat(np.arange(buffer.buffer_size), 40)  # the lane of a row is drawn at random
    found = buffer._get_samples(rows)
    columns = [x.numpy().ravel() for x in (found.observations, *found[1:5])]
    return {tuple(np.round(row, 4)) for row in np.stack(columns, 1)}


class TestBuffers:
    REWARDS = (0.3, -0.2, 0.7, 0.1)

    @pytest.mark.parametrize(
        ("buffer_type", "options"),
        [(MonteCarloBuffer, {"n_steps": LENGTH, "gamma": 1.0}), (ExecutedActionBuffer, {})],
    )
    def test_lanes_hold_what_separate_episodes_do(self, buffer_type, options):
        np.random.seed(0)  # noqa: NPY002  # SB3 draws from it
        one_by_one = contents(filled(buffer_type, self.REWARDS, 1, **options))
        assert len(one_by_one) == len(self.REWARDS) * LENGTH
        assert contents(filled(buffer_type, self.REWARDS, 2, **options)) == one_by_one
        assert contents(filled(buffer_type, self.REWARDS, 4, **options)) == one_by_one

    def test_broadcast_writes_a_reward_into_the_rows_of_its_own_lane(self):
        buffer = filled(BroadcastBuffer, self.REWARDS, 2)
        expected = np.repeat(np.float32(self.REWARDS).reshape(2, 2), LENGTH, axis=0)
        np.testing.assert_array_equal(buffer.rewards, expected)

    def test_the_scale_of_rewards_is_that_of_all_lanes(self):
        buffer = filled(ExecutedActionBuffer, self.REWARDS, 2)
        buffer.fix_reward_scale()
        assert buffer.reward_scale == pytest.approx(np.std(self.REWARDS))


class TestRounds:
    @pytest.mark.parametrize("agent", [DDPG, OneShotDDPG])
    def test_the_plans_of_a_round_are_asked_for_together(self, agent):
        env = make_env(8)
        service = watch(env)
        result = agent(**QUICK, finalists=0).search(env, 14, seed=0, parallel=4)
        assert len(result.trials) == 14
        assert service.most == 4
        distinct = dict.fromkeys(trial.plan for trial in result.trials)
        assert service.asked == [*distinct]  # nothing foreseen turned out otherwise

    def test_the_last_round_is_filled_without_an_evaluation(self):
        env = make_env(5)
        result = DDPG(**QUICK, finalists=0).search(env, 14, seed=0, parallel=4)  # 14 = 3 * 4 + 2
        assert [t.source for t in result.trials[:4]] == ["uniform", *["warm-up"] * 3]
        assert result.trials[-1].source == "policy"
        assert len(result.trials) == 14

    def test_as_many_updates_follow_as_after_the_same_episodes_one_by_one(self):
        agent, env = DDPG(**QUICK), make_env(5)
        agent.search(env, 1 + 3 + 8, seed=0, parallel=4)
        taught = 3  # rounds: the first has what is known and the warm-up, and is learned from
        assert agent.model._n_updates == taught * 4 * env.n_decisions

    def test_a_learned_policy_is_the_first_to_act(self, tmp_path):
        agent, env = DDPG(**QUICK), make_env(5)
        agent.search(env, 10, seed=0)
        agent.save_policy(tmp_path / "policy")
        prior = RandomSearch().search(make_env(5), 6, seed=1).trials
        heir = DDPG(**QUICK, policy=str(tmp_path / "policy"), elite_share=0.0, finalists=0)
        trials = [heir.search(env, 9, seed=0, warm_start=prior, parallel=k).trials for k in (1, 4)]
        assert trials[0][1].plan == trials[1][1].plan  # seen before anything new was learned


class TestProposals:
    def proposals(self, search, n_prior=0, **options):
        return Proposals(search, Exploration(**options), one_shot=True)

    @pytest.mark.parametrize(
        ("warmup", "known", "warm"),
        [(10, 1, 11), (3, 1, 3), (1, 4, 0)],  # filled by warm-up; full; filled by known episodes
    )
    def test_learning_begins_after_whole_rounds(self, warmup, known, warm):
        with Search(make_env(), 30, 0, parallel=4) as search:
            search.uniform()
            proposals = self.proposals(search, warmup_episodes=warmup)
            assert (proposals.n_known, proposals.n_warmup) == (known, warm)
            assert proposals.first_update == known + warm
            assert proposals.n_episodes % 4 == 0

    def test_what_is_under_way_is_not_proposed_again(self):
        with Search(make_env(2, "macs=0.9"), 40, 0, parallel=12) as search:
            search.uniform()
            proposals = self.proposals(
                search, warmup_episodes=1, elite_share=1.0, screen=4, elite_count=1
            )
            drawn = [proposals.next() for _ in range(24)]
            new = [proposal.plan for proposal in drawn if proposal.known is None]
            assert len(new) == len(set(new)) == 12
            assert all(proposal.known for proposal in drawn[:12])

    def test_the_schedule_goes_by_episodes_that_began(self):
        with Search(make_env(), 9, 0, parallel=8) as search:
            search.uniform()
            proposals = self.proposals(search, warmup_episodes=1, elite_share=0.0)
            drawn = [proposals.next() for _ in range(proposals.n_episodes)]
            new = [proposal for proposal in drawn if proposal.known is None]
            assert len(new) == search.remaining
            sigmas = [proposal.sigma for proposal in new]
            assert sigmas == sorted(sigmas, reverse=True)
            assert [proposal.greedy for proposal in new] == [False] * 7 + [True]
