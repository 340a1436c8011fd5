import numpy as np
import pytest
import torch
from support.selection import quick

from amc_compress.agents import DDPG, AgentError, Exploration, RandomSearch, Uniform
from amc_compress.agents.actor_critic.exploration import truncated_normal
from amc_compress.agents.testing.contract import make_env
from amc_env import CompressionEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner, make_synthetic

QUICK = {"warmup_episodes": 4, "hidden": 32, "updates_per_episode": 1}


def searched(n_layers: int = 5, episodes: int = 12, seed: int = 0, **options):
    agent = DDPG(**(QUICK | options))
    env = make_env(n_layers)
    return agent, env, agent.search(env, episodes, seed)


def centred(result) -> np.ndarray:
    rewards = np.array([trial.reward for trial in result.trials])
    return rewards - rewards[0]


class WithCurves(SyntheticLearner):
    def layer_errors(self):
        """The formula's own damage per layer: what perfect curves would be."""
        return {
            d.key: s * (1 - np.array(d.choices)) ** 1.5
            for d, s in zip(self.decisions, self._sensitivity, strict=True)
        }


class TestCredit:
    @pytest.mark.parametrize("buffer_episodes", [100, 7])  # 7: the ring has wrapped around
    def test_every_sampled_target_is_the_final_reward_of_its_episode(self, buffer_episodes):
        agent, env, result = searched(buffer_episodes=buffer_episodes, scale_rewards=False)
        buffer = agent.model.replay_buffer
        episodes = len(result.trials)
        rows = np.arange(min(episodes, buffer_episodes) * env.n_decisions)
        samples = buffer._get_samples(rows)
        slot_owner = {e % buffer_episodes: e for e in range(episodes)}
        expected = [centred(result)[slot_owner[row // env.n_decisions]] for row in rows]
        np.testing.assert_allclose(samples.rewards.squeeze(1), expected, atol=1e-6)
        assert (samples.dones == 1).all()  # nothing is bootstrapped

    def test_rewards_are_scaled_by_their_spread_in_the_warmup(self):
        agent, _, result = searched()
        spread = centred(result)[: QUICK["warmup_episodes"]].std()
        assert agent.model.replay_buffer.reward_scale == pytest.approx(spread, rel=1e-5)

    def test_equal_rewards_in_the_warmup_leave_the_scale_alone(self):
        env = make_env(reward=lambda _: 0.25)
        agent = DDPG(**QUICK)
        agent.search(env, 8, seed=0)
        assert agent.model.replay_buffer.reward_scale == 1.0

    def test_broadcast_copies_the_final_reward_to_every_row(self):
        agent, env, result = searched(credit="broadcast")
        stored = agent.model.replay_buffer.rewards[: 12 * env.n_decisions, 0]
        expected = np.repeat(centred(result), env.n_decisions)
        np.testing.assert_allclose(stored, expected, atol=1e-6)

    def test_broadcast_subtracts_a_moving_mean_and_bootstraps_inside_the_episode(self):
        agent, env, _ = searched(credit="broadcast", scale_rewards=False)
        buffer = agent.model.replay_buffer
        buffer._baseline = 0.0
        rows = np.arange(3 * env.n_decisions)
        samples = buffer._get_samples(rows)
        raw = buffer.rewards[rows, 0]
        np.testing.assert_allclose(samples.rewards.squeeze(1), raw - 0.5 * raw.mean(), atol=1e-6)
        assert samples.dones.sum() == 3


class TestWhatIsStored:
    @pytest.mark.parametrize("credit", ["monte_carlo", "broadcast"])
    def test_the_buffer_holds_the_executed_actions(self, credit):
        agent, env, result = searched(credit=credit)
        stored = agent.model.replay_buffer.actions[: 12 * env.n_decisions, 0, 0]
        expected = np.concatenate([env.encode(trial.plan) for trial in result.trials])
        np.testing.assert_allclose((stored + 1) / 2, expected, atol=1e-6)

    def test_the_stored_actions_lead_back_to_the_plan(self):
        agent, env, result = searched()
        rows = agent.model.replay_buffer.actions[: env.n_decisions, 0, 0]
        assert env.decode((rows + 1) / 2) == result.trials[0].plan == env.uniform_plan()


class TestExploration:
    def test_sources_follow_the_schedule(self):
        _, _, result = searched()
        sources = [trial.source for trial in result.trials]
        assert sources[0] == "uniform"
        assert sources[1:4] == ["warm-up"] * 3
        assert sources[-1] == "policy"
        assert set(sources[4:]) <= {"policy", "elite"}

    def test_sigma_is_silent_in_warmup_decays_geometrically_and_ends_silent(self):
        schedule = Exploration(warmup_episodes=5, sigma=0.4, final_sigma=0.1)
        sigmas = [schedule.sigma_at(e, 5, 16) for e in range(16)]
        assert sigmas[:5] == [0.0] * 5
        assert sigmas[5] == pytest.approx(0.4)
        assert sigmas[14] == pytest.approx(0.1)
        assert sigmas[15] == 0.0
        ratios = np.array(sigmas[6:15]) / np.array(sigmas[5:14])
        np.testing.assert_allclose(ratios, (0.1 / 0.4) ** (1 / 9))

    @pytest.mark.parametrize("action_mapping", ["centred", "interval", "absolute"])
    def test_a_warmup_without_spread_executes_exactly_the_uniform_plan(self, action_mapping):
        env = make_env(5, action=action_mapping)
        result = DDPG(warmup_sigma=0.0, **QUICK).search(env, 6, seed=0)
        assert {trial.plan for trial in result.trials[:4]} == {env.uniform_plan()}

    def test_random_warmup_executes_the_seeded_uniform_draws_and_nothing_else(self):
        _, env, result = searched(warmup="random", seed=11)
        rng = np.random.default_rng(11)
        for trial in result.trials[1:4]:
            assert trial.plan == env.decode(rng.random(env.n_decisions, dtype=np.float32))

    def test_truncated_normal_has_the_moments_of_rejection_sampling(self):
        ours = [
            truncated_normal(0.2, 0.3, rng)
            for rng in [np.random.default_rng(0)]
            for _ in range(4000)
        ]
        drawn = np.random.default_rng(1).normal(0.2, 0.3, size=40_000)
        kept = drawn[(drawn >= 0) & (drawn <= 1)]
        assert np.mean(ours) == pytest.approx(kept.mean(), abs=0.015)
        assert np.std(ours) == pytest.approx(kept.std(), abs=0.015)

    @pytest.mark.parametrize(
        "options",
        [
            {"warmup": "loud"},
            {"warmup_episodes": 0},
            {"elite_share": 1.5},
            {"sigma": -0.1},
            {"credit": "cash"},
            {"tau": 0.0},
            {"hidden": 0},
            {"actor_learning_rate": 0.0},
        ],
    )
    def test_senseless_settings_are_rejected(self, options):
        with pytest.raises(ValueError, match="Expected"):
            DDPG(**options)


class TestLearning:
    def test_actor_and_critic_really_have_their_own_learning_rates(self):
        agent, _, _ = searched(actor_learning_rate=2e-4, critic_learning_rate=3e-3)
        assert agent.model.actor.optimizer.param_groups[0]["lr"] == 2e-4
        assert agent.model.critic.optimizer.param_groups[0]["lr"] == 3e-3

    def test_updates_happen_at_episode_ends_only_and_as_many_as_asked(self):
        agent, env, _ = searched(episodes=12, updates_per_episode=3)
        # after each of the episodes 3 (the last of the warm-up) to 11
        assert agent.model._n_updates == 3 * env.n_decisions * 9

    def test_pretraining_adds_its_updates_once(self):
        agent, env, _ = searched(episodes=12, pretrain=2)
        assert agent.model._n_updates == env.n_decisions * (9 + 2 * 4)

    def test_no_update_happens_before_the_warmup_is_over(self):
        agent, _, _ = searched(episodes=3)
        assert agent.model._n_updates == 0

    def test_a_policy_that_turned_nan_ends_with_one_clear_sentence(self):
        agent = DDPG(**QUICK)

        def poison(trial):
            if trial.episode == 6:
                with torch.no_grad():
                    for parameter in agent.model.actor.parameters():
                        parameter.fill_(float("nan"))

        with pytest.raises(AgentError, match=r"shape \(1,\)"):
            agent.search(make_env(), 12, seed=0, on_trial=poison)

    def test_there_is_no_model_before_the_first_search(self):
        with pytest.raises(ValueError, match="before the first search"):
            _ = DDPG().model

    @pytest.mark.parametrize("instances", quick([(3,), (3, 4)], (3,)))
    def test_beats_uniform_and_random_at_equal_episodes(self, instances):
        """In accuracy; smaller networks than the default so that the test is quick."""
        gains = []
        for instance in instances:
            env = make_synthetic(8, instance)
            uniform = Uniform().search(env, 1, 0).reward
            for seed in (0, 1):
                random = RandomSearch().search(env, 60, seed).reward
                ddpg = DDPG(hidden=64).search(env, 60, seed).reward
                assert ddpg > uniform
                gains.append(ddpg - max(random, uniform))
        assert np.mean(gains) > 0.01  # one point of accuracy
        assert min(gains) > -0.005


class TestOpenings:
    def test_the_plan_of_the_prior_is_tried_second(self):
        env = CompressionEnv(WithCurves(8, seed=1), "macs=0.5")
        result = DDPG(prior="layer_errors", opening=True, **QUICK).search(env, 6, seed=0)
        assert [t.source for t in result.trials[:2]] == ["uniform", "prior"]
        assert result.trials[1].reward > result.trials[0].reward

    def test_it_is_left_out_by_default(self):
        env = CompressionEnv(WithCurves(8, seed=1), "macs=0.5")
        result = DDPG(**QUICK).search(env, 6, seed=0)
        assert "prior" not in {t.source for t in result.trials}

    def test_damaged_curves_are_rejected(self):
        learner = WithCurves(4, seed=1)
        learner.layer_errors = lambda: {}
        with pytest.raises(AgentError, match="layer_errors"):
            DDPG(prior="layer_errors", **QUICK).search(
                CompressionEnv(learner, "macs=0.5"), 6, seed=0
            )
