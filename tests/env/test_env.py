from __future__ import annotations

import pickle
import warnings

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.error import InvalidAction, ResetNeeded
from gymnasium.utils.env_checker import check_env
from stable_baselines3.common.env_checker import check_env as sb3_check_env

import amc_env
from amc_env import Budget, CompressionEnv, CompressionPlan, InfeasibleBudgetError
from amc_env.observation import FEATURES
from amc_env.recorded_tasks.synthetic import SyntheticLearner


def make_env(budget="macs=0.5", **options):
    return CompressionEnv(SyntheticLearner(6, seed=1), budget, **options)


def rollout(env, seed):
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    steps, terminated = [(observation, 0.0, info)], False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(rng.random(1, dtype=np.float32))
        assert not truncated
        steps.append((observation, reward, info))
    return steps


def test_gymnasiums_checker_has_nothing_to_say():
    check_env(gym.make("amc_env:amc/synthetic-v0").unwrapped)


def test_sb3s_checker_only_recommends_a_symmetric_action_space():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        sb3_check_env(make_env())
    assert all("symmetric and normalized Box action space" in str(w.message) for w in caught)


def test_equal_seeds_give_equal_rollouts():
    for (o1, r1, i1), (o2, r2, i2) in zip(
        rollout(make_env(), 3), rollout(make_env(), 3), strict=True
    ):
        assert np.array_equal(o1, o2)
        assert r1 == r2
        assert repr(i1) == repr(i2)


@pytest.mark.parametrize("action_mapping", ["absolute", "interval", "centred"])
@pytest.mark.parametrize("budget", ["macs=0.5", "macs=0.48:0.5", "macs=0.5:0.6,bytes=0.4:0.5"])
def test_every_action_mapping_ends_within_the_budget_after_exactly_n_decisions(
    action_mapping, budget
):
    env = make_env(budget, action=action_mapping)
    for seed in range(5):
        steps = rollout(env, seed)
        assert len(steps) == env.n_decisions + 1
        assert env.budget.is_met(steps[-1][2]["cost_ratio"])


@pytest.mark.parametrize("action_mapping", ["absolute", "interval", "centred"])
def test_the_executed_action_leads_to_the_same_plan_again(action_mapping):
    env = make_env(action=action_mapping)
    steps = rollout(env, 0)
    executed = [float(info["executed_action"][0]) for _, _, info in steps[1:]]
    assert dict(env.decode(executed)) == steps[-1][2]["plan"]


def test_decode_and_encode_are_inverse_and_evaluate_nothing():
    env = make_env()
    plan = env.decode(np.random.default_rng(0).random(env.n_decisions))
    assert env.decode(env.encode(plan)) == plan
    assert env.n_evaluations == 0


def test_the_untrained_centre_is_the_uniform_plan():
    env = make_env()
    assert env.decode([0.5] * env.n_decisions) == env.uniform_plan()


def test_the_uniform_plan_spends_the_budget():
    env = make_env("macs=0.5")
    assert 0.45 < env.cost_ratio(env.uniform_plan())["macs"] <= 0.5


def test_the_last_info_holds_accuracy_cost_ratio_and_plan():
    env = make_env()
    _, reward, info = rollout(env, 0)[-1]
    outcome = env.evaluate(CompressionPlan(info["plan"]))
    assert info["accuracy"] == reward == outcome.score
    assert info["cost_ratio"] == outcome.cost_ratio
    assert outcome.feasible


def test_equal_plans_are_evaluated_once():
    class Counting(SyntheticLearner):
        calls = 0

        def evaluate(self, plan):
            self.calls += 1
            return super().evaluate(plan)

    learner = Counting(4)
    env = CompressionEnv(learner, "macs=0.5")
    for _ in range(3):
        env.evaluate(env.uniform_plan())
    assert learner.calls == 1


def test_a_remembered_evaluation_is_not_made_again():
    env = make_env()
    env.remember(env.uniform_plan(), 0.123)
    assert env.evaluate(env.uniform_plan()).score == 0.123


def test_the_environment_survives_pickling_in_mid_episode():
    env = make_env()
    env.reset()
    env.step(np.array([0.3], dtype=np.float32))
    copy = pickle.loads(pickle.dumps(env))
    action = np.array([0.8], dtype=np.float32)
    assert np.array_equal(env.step(action)[0], copy.step(action)[0])


def test_observations_are_fresh_and_stay_in_the_unit_box():
    env = make_env()
    for observation, _, _ in rollout(env, 1):
        assert observation in env.observation_space
        observation[:] = 7.0
    first, _ = env.reset()
    assert first.max() <= 1.0


def test_features_keep_their_meaning_from_reset_to_the_end():
    env = make_env("macs=0.4")
    index = {name: i for i, (name, _) in enumerate(FEATURES)}
    steps = rollout(env, 2)
    for step, (observation, _, info) in enumerate(steps[:-1]):
        assert observation[index["position"]] == pytest.approx(step / env.n_decisions)
        assert observation[index["budget"]] == pytest.approx(0.4)
        later = steps[step + 1][2]
        assert observation[index["interval_low"]] == pytest.approx(later["interval"][0])
        assert observation[index["interval_high"]] == pytest.approx(later["interval"][1])
        expected = info["value"] if step else 1.0
        assert observation[index["previous"]] == pytest.approx(expected)


def test_reduced_is_the_saved_share_of_macs():
    env = make_env()
    env.reset()
    value = env.step(np.array([0.0], dtype=np.float32))[4]["value"]
    rest = [d.choices[-1] for d in env.decisions[1:]]
    plan = CompressionPlan.from_values(env.decisions, [value, *rest])
    env.reset()
    observation = env.step(np.array([0.0], dtype=np.float32))[0]
    index = [name for name, _ in FEATURES].index("reduced")
    assert observation[index] == pytest.approx(1.0 - env.cost_ratio(plan)["macs"], abs=1e-6)


def test_stepping_too_far_or_too_early_asks_for_reset():
    env = make_env()
    with pytest.raises(ResetNeeded):
        env.step(np.array([0.5], dtype=np.float32))
    rollout(env, 0)
    with pytest.raises(ResetNeeded):
        env.step(np.array([0.5], dtype=np.float32))


@pytest.mark.parametrize("bad", [[1.5], [-0.1], [float("nan")], [0.5, 0.5], 0.5])
def test_actions_outside_the_space_are_rejected(bad):
    env = make_env()
    env.reset()
    with pytest.raises(InvalidAction, match=r"one number in \[0, 1\]"):
        env.step(np.array(bad, dtype=np.float32))


@pytest.mark.parametrize(
    "options",
    [{"action": "x"}, {"reward": "x"}, {"render_mode": "x"}, {"reward": "accuracy_latency"}],
)
def test_unknown_options_are_errors_at_construction(options):
    with pytest.raises(ValueError, match=r"Unknown|needs the cost 'latency'"):
        make_env(**options)


def test_a_custom_cost_serves_budget_and_reward():
    def latency(values):
        return 1.0 + float(np.sum(values))

    env = make_env(Budget(latency=0.6), reward="accuracy_latency", cost_models={"latency": latency})
    assert rollout(env, 0)[-1][2]["cost_ratio"]["latency"] <= 0.6


def test_a_budget_given_at_reset_replaces_the_old_one():
    env = make_env("macs=0.5")
    env.reset(options={"budget": "macs=0.3"})
    assert env.cost_ratio(env.uniform_plan())["macs"] <= 0.3


def test_an_unreachable_budget_keeps_the_old_one():
    env = make_env("macs=0.5")
    with pytest.raises(InfeasibleBudgetError, match="reachable on this grid"):
        env.set_budget("macs=0.0001")
    assert env.budget == Budget(macs=0.5)


def test_tables_show_every_decision_and_pictures_change_with_the_plan():
    env = make_env(render_mode="ansi")
    rollout(env, 0)
    assert all(d.target in env.render() for d in env.decisions)
    env.render_mode = "rgb_array"
    after = env.render()
    env.reset()
    before = env.render()
    assert before.dtype == np.uint8
    assert before.shape == after.shape
    assert not np.array_equal(before, after)


def test_wrong_numbers_of_actions_or_values_are_rejected():
    env = make_env()
    with pytest.raises(ValueError, match="Expected 6 actions, got 2"):
        env.decode([0.5, 0.5])
    with pytest.raises(ValueError, match="Expected 6 values, got 1"):
        env.project([0.5])


def test_tasks_are_registered_and_their_specs_round_trip_through_json():
    for name in amc_env.TASKS:
        spec = gym.spec(name)
        assert gym.envs.registration.EnvSpec.from_json(spec.to_json()) == spec
        assert spec.max_episode_steps is None
    amc_env.register_tasks()


def test_a_made_environment_can_be_made_again_from_its_spec():
    env = gym.make("amc_env:amc/synthetic-v0", n_layers=5, budget="macs=0.4")
    spec = gym.envs.registration.EnvSpec.from_json(env.spec.to_json())
    assert gym.make(spec).unwrapped.n_decisions == 5


def test_an_outcome_can_be_made_of_an_accuracy_measured_elsewhere():
    env = make_env()
    plan = env.uniform_plan()
    outcome = env.outcome(plan, 0.5)
    assert outcome.reward == outcome.score == 0.5
    assert outcome.cost_ratio == env.cost_ratio(plan)
    assert env.n_evaluations == 0


def test_a_learner_without_decisions_has_one_plan_and_no_episode():
    learner = SyntheticLearner(3)
    learner.decisions = ()
    with pytest.raises(InfeasibleBudgetError, match="Nothing is decided, so the costs are macs 1"):
        CompressionEnv(learner, "macs=0.5")
    env = CompressionEnv(learner, "macs=1.0")
    env.remember(CompressionPlan({}), 0.9)
    outcome = env.evaluate(env.uniform_plan())
    assert outcome.plan == CompressionPlan({})
    assert outcome.feasible
    assert outcome.cost_ratio == {name: 1.0 for name in env.costs}
    with pytest.raises(ValueError, match="learner with decisions"):
        env.reset()
