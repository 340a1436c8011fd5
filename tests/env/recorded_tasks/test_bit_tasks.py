"""Tasks that decide bits: observation, table, picture, costs of the learner, synthetic accuracy."""

from __future__ import annotations

from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.costs.costs import make_cost
from amc_env.kinds import USUAL_KINDS
from amc_env.observation import BIT_FEATURES, FEATURES, features_for
from amc_env.plan import Decision, DecisionKind
from amc_env.recorded_tasks.synthetic import SyntheticBitsLearner, SyntheticLearner
from amc_env.render import plan_table
from amc_env.reward import REWARDS, Result

JOINT = "macs=0.5,bytes=0.1"
INDEX = {name: i for i, (name, _) in enumerate((*FEATURES, *BIT_FEATURES))}


def joint(n_layers=4, budget=JOINT, **options):
    return CompressionEnv(SyntheticBitsLearner(n_layers, 1, channels=True), budget, **options)


def play(env, seed):
    rng = np.random.default_rng(seed)
    observation, info = env.reset()
    steps, terminated = [(observation, info)], False
    while not terminated:
        observation, _, terminated, _, info = env.step(rng.random(1).astype(np.float32))
        steps.append((observation, info))
    return steps


@pytest.mark.parametrize(
    "name", ["amc/synthetic-bits-v0", "amc/synthetic-joint-v0", "amc/synthetic-depth-v0"]
)
def test_gymnasiums_checker_has_nothing_to_say(name):
    check_env(gym.make(f"amc_env:{name}", n_layers=4).unwrapped)


def test_channel_tasks_observe_what_they_always_did():
    env = CompressionEnv(SyntheticLearner(4), "macs=0.5")
    assert features_for(env.decisions) == FEATURES
    assert env.observation_space.shape == (22,)
    assert joint().observation_space.shape == (22 + len(BIT_FEATURES),)


def test_the_page_lists_every_feature_with_its_meaning():
    page = (Path(__file__).parents[3] / "docs" / "environment.md").read_text(encoding="utf-8")
    for i, (name, meaning) in enumerate((*FEATURES, *BIT_FEATURES)):
        assert f"| {i} | `{name}` | {meaning} |" in page


def test_decisions_come_by_depth_channels_before_weights_before_activations():
    keys = [d.key for d in joint(3).decisions]
    assert keys == [
        "conv0:keep_ratio",
        *(f"conv1:{kind}" for kind in ("keep_ratio", "weight_bits", "activation_bits")),
        *(f"conv2:{kind}" for kind in ("keep_ratio", "weight_bits", "activation_bits")),
    ]


def test_features_say_the_kind_and_what_is_decided_for_the_layer():
    env = joint()
    steps = play(env, 0)
    values = {info["decision"]: info["value"] for _, info in steps[1:]}
    for decision, (observation, _) in zip(env.decisions, steps[:-1], strict=True):
        assert 0.0 <= observation.min() <= observation.max() <= 1.0
        kinds = [observation[INDEX[f"is_{kind.name}"]] for kind in USUAL_KINDS]
        assert kinds == [float(kind is decision.kind) for kind in USUAL_KINDS]
    observed = {d.key: o for d, (o, _) in zip(env.decisions, steps[:-1], strict=True)}
    last = observed["conv2:activation_bits"]
    assert last[INDEX["kept_outputs"]] == pytest.approx(values["conv2:keep_ratio"])
    assert last[INDEX["kept_inputs"]] == pytest.approx(values["conv1:keep_ratio"])
    assert last[INDEX["weight_bits"]] == pytest.approx((values["conv2:weight_bits"] - 2) / 6)
    before = (values["conv1:activation_bits"] - 2) / 6
    assert last[INDEX["previous_alike"]] == pytest.approx(before)
    assert last[INDEX["previous"]] == last[INDEX["weight_bits"]]
    first = observed["conv1:weight_bits"]
    assert first[INDEX["previous_alike"]] == first[INDEX["weight_bits"]] == 1.0


def test_room_is_the_payable_part_of_what_can_still_move():
    env = joint(budget="bytes=0.1")
    observation, _ = env.reset()
    low, high = env._feasible.corner_ratios(())["bytes"]
    assert observation[INDEX["room"]] == pytest.approx((0.1 - low) / (high - low), rel=1e-5)


def test_a_choice_of_one_is_observed_and_played():
    learner = SyntheticBitsLearner(3, bits=(4,))
    env = CompressionEnv(learner, "mean_bits=0.2")
    steps = play(env, 0)
    assert {info["value"] for _, info in steps[1:]} == {4.0}
    assert all(o.max() <= 1.0 for o, _ in steps)


@pytest.mark.parametrize("action_mapping", ["absolute", "interval", "centred"])
def test_executed_actions_lead_to_the_same_plan_again(action_mapping):
    env = joint(action=action_mapping)
    steps = play(env, 3)
    executed = [float(info["executed_action"][0]) for _, info in steps[1:]]
    assert dict(env.decode(executed)) == steps[-1][1]["plan"]
    assert env.budget.is_met(steps[-1][1]["cost_ratio"])


def test_the_learners_cost_models_replace_the_defaults_and_the_users_replace_both():
    learner = SyntheticBitsLearner(4)
    env = CompressionEnv(learner, "bytes=0.2")
    assert env.costs["bytes"] is learner.cost_models["bytes"]
    mine = make_cost("bytes", env.graph, env.decisions)
    assert CompressionEnv(learner, "bytes=0.9", cost_models={"bytes": mine}).costs["bytes"] is mine


def test_ratios_refer_to_the_float_original_not_to_the_largest_plan():
    env = joint()
    full = env.cost_ratio(CompressionPlan.full(env.decisions))
    assert full["macs"] == 1.0
    assert full["mean_bits"] == 8 / 32
    assert full["bops"] == pytest.approx(64 / 1024)
    assert 0.25 < full["bytes"] < 0.3
    assert env.original_cost["bytes"] == make_cost("bytes", env.graph, ())(())


def test_tables_print_bits_and_no_kept_channels_for_them():
    env = joint()
    table = env.decode([0.5] * env.n_decisions).values_for(env.decisions)
    lines = plan_table(env.graph, env.decisions, table, env.costs).splitlines()
    rows = {tuple(line.split()[:2]): line.split()[2:] for line in lines[1 : env.n_decisions + 1]}
    for decision, value in zip(env.decisions, table, strict=True):
        shown = rows[decision.target, decision.kind.name]
        if decision.kind is DecisionKind.KEEP_RATIO:
            assert shown[1] == f"{decision.units(value)}/{decision.size}"
        else:
            assert shown[0] == f"{value:g}"
            assert len(shown) == 2
    assert [line.split()[0] for line in lines[-5:]] == [
        "macs", "params", "bytes", "bops", "mean_bits",
    ]  # fmt: skip
    assert "of 32 (" in lines[-1]


def test_sixteen_bits_are_shown_as_off():
    learner = SyntheticBitsLearner(3, bits=(2, 16))
    table = plan_table(learner.graph, learner.decisions, [16.0])
    assert table.splitlines()[1].split() == ["conv1", "weight_bits", "off", "#" * 20]


def test_custom_costs_are_listed_in_the_table():
    env = joint(cost_models={"latency": lambda values: 1.5 + float(np.sum(values))})
    assert (
        plan_table(env.graph, env.decisions, [], env.costs).splitlines()[-1].startswith("latency")
    )


def test_pictures_have_a_panel_for_bits():
    env = joint(render_mode="rgb_array")
    env.reset()
    empty = env.render()
    play(env, 0)
    full = env.render()
    half = len(full) // 2
    assert empty.shape == full.shape
    assert (empty[:half] != full[:half]).any()
    assert (empty[half:] != full[half:]).any()
    channels = CompressionEnv(SyntheticLearner(4), "macs=0.5", render_mode="rgb_array")
    assert len(channels.render()) < len(full)


def test_budgets_read_fractions_and_write_what_they_read():
    budget = Budget.parse("mean_bits=4/32, bops=1/256:1/64,bytes=0.15")
    assert budget == Budget(mean_bits=0.125, bops=(1 / 256, 1 / 64), bytes=0.15)
    assert Budget.parse(str(budget)) == budget
    assert eval(repr(budget), {"Budget": Budget}) == budget
    third = Budget.parse("bytes=1/3")
    assert Budget.parse(str(third)) == third


@pytest.mark.parametrize("bad", ["bytes=1/0", "bytes=1/2/3", "bytes=/2", "bytes=4/"])
def test_bad_fractions_show_the_form(bad):
    with pytest.raises(ValueError, match=r"mean_bits=4/32"):
        Budget.parse(bad)


def test_haqs_reward_is_a_tenth_of_the_points_lost():
    result = Result(0.85, 0.90, {"bops": 1.0}, {"bops": 0.05}, {"bops": 0.1}, best_score=1.0)
    assert REWARDS["haq"](result) == pytest.approx(-0.5)
    assert REWARDS["accuracy_bops"](result) == pytest.approx(0.85 * 0.5**-0.07)


def test_synthetic_accuracy_grows_with_every_decision():
    learner = SyntheticBitsLearner(4, seed=3, channels=True, bits=(2, 4, 8, 16), coupling=0.0)
    full = CompressionPlan.full(learner.decisions)
    assert learner.evaluate(full) == learner.original_score
    for decision in learner.decisions:
        curve = [
            learner.evaluate(CompressionPlan({**full, decision.key: choice}))
            for choice in decision.choices
        ]
        assert curve == sorted(curve)
        lost = -np.log(np.array(curve) / learner.original_score)
        assert lost == pytest.approx(learner.layer_errors()[decision.key])


def test_a_chain_without_decided_bits_is_rejected():
    with pytest.raises(ValueError, match="n_layers >= 2"):
        SyntheticBitsLearner(1)


def test_a_bit_decision_without_a_layer_is_rejected():
    learner = SyntheticBitsLearner(3)
    learner.decisions = (Decision("nowhere", DecisionKind.WEIGHT_BITS, (2.0, 4.0), 1),)
    with pytest.raises(ValueError, match=r"weight_bits of \['nowhere'\]"):
        CompressionEnv(learner, "bytes=0.5")
