"""Kinds of decisions: the usual ones are stored and observed as ever; one comes from outside."""

from __future__ import annotations

import copy
import json
import pickle

import numpy as np
import pytest
from support.own_kind import RANK, RankLearner

from amc_compress.report.plan_pictures import pictures_of_kinds
from amc_env import (
    KINDS,
    CompressionEnv,
    CompressionPlan,
    Decision,
    DecisionKind,
    InputDataError,
    PlanMismatchError,
    Quantity,
    register_kind,
    resolve_kind,
)
from amc_env.kinds import USUAL_KINDS
from amc_env.observation import BIT_FEATURES, FEATURES, features_for
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json
from amc_env.recorded_tasks.synthetic import SyntheticBitsLearner
from amc_env.render import plan_table

WHERE = "support.own_kind:RANK"
COSTS = {"factored_macs": "support.own_kind:FactoredMacs"}


@pytest.fixture
def rank():
    """The kind, known for this test alone."""
    yield resolve_kind(WHERE)
    KINDS.pop("rank", None)


def test_the_usual_kinds_are_named_in_files_as_ever_and_stay_themselves():
    assert [k.name for k in USUAL_KINDS] == [
        "keep_ratio", "density", "weight_bits", "activation_bits",
    ]  # fmt: skip
    for kind in USUAL_KINDS:
        assert kind is KINDS[kind.name] is copy.deepcopy(kind) is pickle.loads(pickle.dumps(kind))
        assert kind == kind.name == str(kind)
    with pytest.warns(DeprecationWarning, match="'name'"):
        assert DecisionKind.DENSITY.value == "density"


def test_a_joint_task_is_observed_and_stored_as_it_was_before_kinds_were_open():
    env = CompressionEnv(SyntheticBitsLearner(3, 0, channels=True), "macs=0.5,bytes=0.1")
    observation, _ = env.reset()
    np.testing.assert_allclose(observation, OBSERVED[0], atol=5.1e-5)
    for action in (0.3, 0.6, 0.5):
        observation, *_ = env.step(np.array([action], dtype=np.float32))
    np.testing.assert_allclose(observation, OBSERVED[1], atol=5.1e-5)
    plan = env.decode([0.4] * env.n_decisions)
    assert json.loads(plan.to_json()) == STORED
    assert CompressionPlan.from_json(json.dumps(STORED)) == plan


OBSERVED = (
    [
        0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0469, 1.0, 1.0, 1.0, 1.0, 1.0, 0.6789, 0.6863, 0.7451,
        0.252, 1.0, 0.0625, 1.0, 0.6884, 0.0971, 0.1, 1.0, 1.0, 1.0, 1.0, 0.3853,
    ],
    [
        0.4286, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 0.931, 0.9412, 0.8749,
        0.069, 0.6667, 0.0, 1.0, 0.774, 0.044, 0.1, 1.0, 0.4375, 0.875, 0.6667, 0.6366,
    ],
)  # fmt: skip
STORED = {
    "format": "compression-plan",
    "version": 1,
    "decisions": [
        {"target": target, "kind": kind, "value": value}
        for target, kind, value in (
            ("conv0", "keep_ratio", 0.5625),
            ("conv1", "keep_ratio", 0.625),
            ("conv1", "weight_bits", 6.0),
            ("conv1", "activation_bits", 7.0),
            ("conv2", "keep_ratio", 0.75),
            ("conv2", "weight_bits", 7.0),
            ("conv2", "activation_bits", 7.0),
        )
    ],
}


def test_an_episode_with_a_kind_from_outside(rank):
    env = CompressionEnv(RankLearner(), "factored_macs=0.5", cost_models=COSTS)
    names = [name for name, _ in features_for(env.decisions)]
    assert names[len(FEATURES) + len(BIT_FEATURES) :] == ["is_rank", "rank"]
    rng = np.random.default_rng(0)
    for _ in range(5):
        observation, done = env.reset()[0], False
        while not done:
            assert dict(zip(names, observation, strict=True))["is_rank"] == 1.0
            assert not observation[1:5].any()
            observation, reward, done, _, info = env.step(rng.random(1).astype(np.float32))
        assert info["cost_ratio"]["factored_macs"] <= 0.5
        assert reward == env.learner.evaluate(CompressionPlan(info["plan"]))
    spent = env.cost(CompressionPlan({"first:rank": 8, "second:rank": 6}))["factored_macs"]
    assert spent == 8 * 40 + 6 * 28


def test_its_plans_go_through_files_tables_and_pictures(rank):
    learner = RankLearner()
    plan = CompressionPlan({"first:rank": 8.0, "second:rank": 12.0})
    assert CompressionPlan.from_json(plan.to_json()) == plan
    document = json.loads(json.dumps(task_to_json(learner.graph, learner.decisions)))
    assert task_from_json(document)[1] == learner.decisions
    table = plan_table(learner.graph, learner.decisions, plan.values_for(learner.decisions))
    assert table.splitlines()[1].split() == ["first", "rank", "8", "8/16", "#" * 10 + "." * 10]
    env = CompressionEnv(learner, "factored_macs=0.9", cost_models=COSTS, render_mode="rgb_array")
    env.reset()
    env.step(np.array([0.5], dtype=np.float32))
    height = env.render().shape[0]
    assert height == round(6.5 * 80), "a panel of its own"
    ((picture, note),) = [(p, n) for p, n in pictures_of_kinds(plan) if p.rows]
    assert (picture.rows, note) == ([("first", 8, 12), ("second", 12, 12)], rank.caption)


def test_another_process_gets_the_kind_with_the_decision(rank):
    sent = pickle.dumps(RankLearner().decisions[0])
    assert pickle.loads(sent).kind is rank
    del KINDS["rank"]  # as where its module was not imported
    received = pickle.loads(sent)
    assert received.kind is KINDS["rank"] is resolve_kind("rank")
    assert type(received.kind) is type(rank)
    assert received.key == "first:rank"


def test_what_is_no_registered_kind_is_rejected(rank):
    with pytest.raises(ValueError, match="whole ranks for a:rank"):
        Decision("a", rank, (1.5, 2.0), 4)
    with pytest.raises(ValueError, match="Expected choices from 0 to 1 for a:keep_ratio"):
        Decision("a", DecisionKind.KEEP_RATIO, (0.5, 2.0), 4)
    with pytest.raises(ValueError, match="a new name, got another 'rank'"):
        register_kind(DecisionKind("rank", "another rank"))
    with pytest.raises(ValueError, match="lower-case letters"):
        DecisionKind("a:b", "a kind")
    with pytest.raises(ValueError, match="0 <= low <= high <= 1 for the values of sparse"):
        DecisionKind("sparse", "a density", Quantity.DENSITY, high=2.0)
    with pytest.raises(InputDataError, match=r"to be an amc_env\.DecisionKind"):
        resolve_kind("support.own_kind:RankLearner")
    text = CompressionPlan({"first:rank": 8.0}).to_json()
    KINDS.pop("rank")
    with pytest.raises(PlanMismatchError, match=r"Unknown kind of decision 'rank'.*register"):
        CompressionPlan.from_json(text)
    with pytest.raises(ValueError, match="Expected a registered kind"):
        RankLearner(RANK)
