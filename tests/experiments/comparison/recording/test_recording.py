"""Recording a task: the plans that are evaluated, the surrogate, and what its figures say."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
from support.runs.recordings import CountingLearner, evaluated_hypercube, make_env

from amc_compress.agents import make_agent
from amc_compress.comparison.recording.recording import (
    HYPERCUBE,
    REFINING,
    SINGLE,
    RecordingOptions,
    evaluate_plans,
    latin_hypercube,
    origin_of,
    record,
    trials_of,
)
from amc_compress.comparison.recording.refinement import Refinement
from amc_compress.comparison.recording.surrogate import fit_model
from amc_compress.comparison.records import EvaluatedPlan, Results, SearchRecord, TaskFacts
from amc_compress.comparison.searches.evaluation_store import EvaluationStore, TaskFingerprint
from amc_compress.comparison.searches.plan_evaluation import single_decisions
from amc_env import (
    CompressionEnv,
    CompressionError,
    CompressionPlan,
    Evaluation,
    EvaluationError,
    Metric,
)
from amc_env.recorded_tasks.recorded import RecordedLearner
from amc_env.recorded_tasks.recorded_file import read_recorded, write_recorded
from amc_env.recorded_tasks.surrogate import TARGETS, targets_for
from amc_env.recorded_tasks.synthetic import SyntheticBitsLearner, SyntheticLearner
from amc_env.scores.evaluations import InProcess
from amc_env.scores.metric import ACCURACY

SMALL = RecordingOptions(
    n_plans=120,
    refinement=Refinement(rounds=1, searches=2, episodes=30, plans=6),
    n_fit=80,
    check_seeds=2,
    check_episodes=20,
)


def make_store(env, path):
    return EvaluationStore(path, TaskFingerprint.of(env, "a formula"))


def local_trials(env):
    trials = make_agent("local", finalists=0).search(env, 60, seed=0).trials
    return {t.plan.choices_for(env.decisions): t.score for t in trials}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    env = make_env()
    store = make_store(env, tmp_path_factory.mktemp("store") / "evaluated.jsonl")
    trials = {"local": local_trials(env)}
    return record(env, store, name="chain", trials=trials, options=SMALL)


# -- the Latin hypercube -------------------------------------------------------------------------


@pytest.mark.parametrize("budget", ["macs=0.5", "macs=0.45:0.5", "macs=0.6,params=0.5"])
def test_the_plans_are_distinct_and_within_the_budget(budget):
    env = make_env(budget, n_layers=6)
    plans = latin_hypercube(env, 200, seed=0)
    assert len(set(plans)) == len(plans) == 200
    assert all(env.budget.is_met(env.cost_ratio(plan)) for plan in plans)
    assert env.learner.calls == 0


def test_the_same_seed_gives_the_same_plans_and_another_one_others():
    one, two, other = (latin_hypercube(make_env(), 50, seed) for seed in (5, 5, 6))
    assert one == two
    assert set(one) != set(other)


@pytest.mark.slow
def test_every_choice_of_every_decision_is_covered():
    env = CompressionEnv(SyntheticBitsLearner(4, channels=True), "macs=0.6,bytes=0.15")
    plans = latin_hypercube(env, 400, seed=0)
    for decision in env.decisions:
        assert {plan[decision.key] for plan in plans} == set(decision.choices)


def test_more_plans_than_the_budget_leaves_are_an_error():
    env = CompressionEnv(SyntheticLearner(1), "macs=0.5")
    with pytest.raises(CompressionError, match=r"Found only \d+ distinct plans .*; ask for fewer"):
        latin_hypercube(env, 1000, seed=0)
    with pytest.raises(ValueError, match="at least one plan"):
        latin_hypercube(env, 0, seed=0)


def test_plans_are_evaluated_once_and_a_killed_recording_goes_on(tmp_path):
    env = make_env()
    plans = [p.choices_for(env.decisions) for p in latin_hypercube(env, 30, seed=0)]
    store = make_store(env, tmp_path / "evaluated.jsonl")
    evaluate_plans(env, plans[:20], store)
    assert env.learner.calls == 20
    again = make_store(env, tmp_path / "evaluated.jsonl")
    evaluated = evaluate_plans(env, plans, again)
    assert env.learner.calls == 30
    expected = [CompressionPlan.from_choices(env.decisions, plan) for plan in plans]
    assert evaluated == {p: env.learner.evaluate(e) for p, e in zip(plans, expected, strict=True)}


class FailsAtFirst(InProcess):
    """Evaluates all but the first plan."""

    def result(self):
        evaluation = super().result()
        if len(self._waiting) < 4:
            return evaluation
        return Evaluation(evaluation.plan, None, "It failed 3 times.")


def test_a_plan_that_cannot_be_evaluated_is_named_and_the_others_are_kept(tmp_path):
    env = make_env()
    plans = [p.choices_for(env.decisions) for p in latin_hypercube(env, 5, seed=0)]
    store = make_store(env, tmp_path / "evaluated.jsonl")
    with pytest.raises(EvaluationError, match=r"1 plan could not be evaluated, among them \["):
        evaluate_plans(env, plans, store, service=FailsAtFirst(env.learner))
    assert [plan for plan, _ in store] == plans[1:]
    assert [*evaluate_plans(env, plans, store)] == plans  # in this order, whatever was stored


# -- the record ----------------------------------------------------------------------------------


def test_the_record_holds_every_source_and_figures_for_each(recorded):
    counts = recorded.counts()
    assert counts[HYPERCUBE] == 120
    assert 0 < counts[REFINING] <= 12
    assert 0 < counts["local"] <= 60
    assert sum(counts.values()) == len(recorded.plans) == len(set(map(tuple, recorded.plans)))
    quality = recorded.quality
    assert len(quality["tried"]) == 12
    assert {"surrogate", "ExtraTrees", "HistGradientBoosting"} < quality["cross_validation"].keys()
    within = len(recorded.plans) - counts[SINGLE]
    assert quality["cross_validation"]["surrogate"]["all"]["n"] == within
    assert quality["searches"]["local"]["all"]["n"] <= 60
    assert [row["searches"] for row in quality["refinement"]] == [2]
    assert quality["winners"]["searches"] == 2
    json.dumps(quality, allow_nan=False)


def test_single_decisions_are_predicted_and_do_not_widen_the_cost_range(recorded):
    env = make_env()
    plans = single_decisions(env, 8)
    assert len(plans) == len(set(plans))
    assert set(plans) <= set(map(tuple, recorded.plans.tolist()))
    assert recorded.counts()[SINGLE] > len(plans) / 2  # a few are within the budget, and known
    assert recorded.cost_range["macs"][1] <= 0.5
    whole = tuple(len(d.choices) - 1 for d in env.decisions)
    for plan in plans:
        assert sum(a != b for a, b in zip(plan, whole, strict=True)) == 1
        evaluated = env.learner.evaluate(CompressionPlan.from_choices(env.decisions, plan))
        assert recorded.surrogate.predict(plan) == pytest.approx(evaluated, abs=0.02)


def test_curves_are_read_from_the_choices_that_sensitivity_evaluates(monkeypatch):
    env = make_env()
    agent, evaluated = make_agent("sensitivity", finalists=0), []
    evaluate = env.learner.evaluate
    monkeypatch.setattr(
        env.learner, "evaluate", lambda plan: evaluated.append(plan) or evaluate(plan)
    )
    agent.search(env, 2 + 8 * env.n_decisions, seed=0)
    alone = {CompressionPlan.from_choices(env.decisions, p) for p in single_decisions(env, 8)}
    assert alone <= set(evaluated)


def test_recorded_accuracies_are_those_of_the_learner(recorded):
    env = make_env()
    for plan, accuracy in zip(recorded.plans[::9], recorded.scores[::9], strict=True):
        evaluated = env.learner.evaluate(CompressionPlan.from_choices(env.decisions, plan))
        assert accuracy == np.float32(evaluated)


def test_winners_of_the_surrogate_are_as_good_as_it_says(recorded):
    winners = recorded.quality["winners"]
    assert winners["judged"] == pytest.approx(winners["predicted"], abs=0.02)


@pytest.mark.slow
def test_recording_again_from_the_same_evaluations_gives_the_same_file(tmp_path):
    options = dataclasses.replace(SMALL, n_plans=60)
    env = make_env()
    store = make_store(env, tmp_path / "evaluated.jsonl")
    first = write_recorded(record(env, store, name="chain", options=options))
    calls = env.learner.calls
    again = make_store(env, tmp_path / "evaluated.jsonl")
    assert write_recorded(record(env, again, name="chain", options=options)) == first
    assert env.learner.calls == calls


def test_a_file_comes_back_as_it_was(recorded, tmp_path):
    path = tmp_path / "chain.npz"
    path.write_bytes(write_recorded(recorded))
    again = read_recorded(path)
    np.testing.assert_array_equal(again.plans, recorded.plans)
    np.testing.assert_array_equal(again.scores, recorded.scores)
    for name in ("graph", "decisions", "storage", "budget", "original_score", "name", "origin"):
        assert getattr(again, name) == getattr(recorded, name)
    assert again.counts() == recorded.counts()
    assert again.quality == json.loads(json.dumps(recorded.quality))
    assert again.cost_range == recorded.cost_range
    for plan in recorded.plans:
        assert again.surrogate.predict(plan) == recorded.surrogate.predict(plan)
    assert write_recorded(again) == path.read_bytes()


def test_costs_that_a_record_cannot_keep_are_rejected_before_anything_is_evaluated(tmp_path):
    env = CompressionEnv(
        CountingLearner(3), "latency=0.9", cost_models={"latency": lambda v: float(sum(v))}
    )
    with pytest.raises(CompressionError, match=r"bounds latency, which does not follow .*macs"):
        record(env, make_store(env, tmp_path / "evaluated.jsonl"), name="chain", options=SMALL)
    assert env.learner.calls == 0


@pytest.mark.slow
def test_costs_of_the_storage_come_back(tmp_path):
    learner = SyntheticBitsLearner(3, channels=True)
    env = CompressionEnv(learner, "macs=0.6,bytes=0.15")
    options = dataclasses.replace(SMALL, n_plans=60, check_seeds=0)
    task = record(env, make_store(env, tmp_path / "evaluated.jsonl"), name="joint", options=options)
    again = CompressionEnv(RecordedLearner(task), task.budget)
    plan = env.uniform_plan()
    assert again.uniform_plan() == plan
    assert again.cost_ratio(plan) == env.cost_ratio(plan)
    curves = again.learner.layer_errors()
    for key, curve in learner.layer_errors().items():
        np.testing.assert_array_equal(curves[key], curve)


# -- a comparison's trials -----------------------------------------------------------------------


def results_of(env, **changes):
    facts = TaskFacts(
        "chain",
        tuple(d.key for d in env.decisions),
        tuple(d.choices for d in env.decisions),
        "macs=0.5",
        env.learner.original_score,
        0.5,
    )
    trials = [
        EvaluatedPlan(i + 1, plan, accuracy, accuracy, {}, 0.0, 0.0, "local")
        for i, (plan, accuracy) in enumerate(local_trials(env).items())
    ]
    searches = (
        SearchRecord("chain", "local", 0, 60, tuple(trials[:40])),
        SearchRecord("chain", "local", 1, 60, tuple(trials[30:])),
        SearchRecord("chain", "tpe", 0, 60, error="it failed"),
        SearchRecord("other", "local", 0, 60, tuple(trials)),
    )
    return Results({"chain": dataclasses.replace(facts, **changes)}, searches)


def test_the_trials_of_a_comparison_are_merged_by_agent():
    env = make_env()
    assert trials_of(results_of(env), "chain", env) == {"local": local_trials(env), "tpe": {}}


def test_trials_of_another_task_are_rejected():
    env = make_env()
    with pytest.raises(CompressionError, match=r"no task 'nothing', only \['chain'\]"):
        trials_of(results_of(env), "nothing", env)
    with pytest.raises(CompressionError, match="other decisions or another original score"):
        trials_of(results_of(env, original_score=0.5), "chain", env)


def test_the_origin_names_options_and_the_checksum_of_the_weights(tmp_path):
    (tmp_path / "weights").write_bytes(b"abc")
    text = origin_of(tmp_path / "weights", model="resnet20", data="cifar10")
    assert text == "data=cifar10, model=resnet20, weights=sha256:ba7816bf8f01cfea"


def test_scores_of_another_metric_are_recorded_in_their_own_unit(recorded, tmp_path):
    metric = Metric("mse", higher_is_better=False)
    assert targets_for(Metric("psnr")) == ("score",)
    assert targets_for(metric) == ("score", "log-loss")
    assert set(targets_for(ACCURACY)) == TARGETS.keys() - {*targets_for(metric)}
    env, plans, accuracies = evaluated_hypercube(60)
    scores = -2e-7 / accuracies
    model = fit_model(env.decisions, plans, scores, warp="value", target="score", n_fit=60)
    surrogate = model.fit(plans, scores)
    task = dataclasses.replace(
        recorded, surrogate=surrogate, scores=scores.astype(np.float32), metric=metric,
        sources=np.zeros(60, np.uint8), original_score=-2e-7 / 0.92,
    )  # fmt: skip
    path = tmp_path / "mse.npz"
    path.write_bytes(write_recorded(task))
    found = CompressionEnv(RecordedLearner.load(path), "macs=0.5")
    assert (found.metric, found.original_score) == (metric, -2e-7 / 0.92)
    predicted = [
        found.learner.evaluate(CompressionPlan.from_choices(env.decisions, p)) for p in plans
    ]
    np.testing.assert_allclose(predicted, scores, atol=0.1 * scores.std())
    assert len(set(predicted)) > 50  # six digits of their spread
