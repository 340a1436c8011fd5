"""The model of scores that a recorded task is made of."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
from support.runs.recordings import evaluated_hypercube

from amc_compress.comparison.recording.surrogate import HammingKernel, fit_model
from amc_compress.comparison.recording.surrogate_quality import (
    Agreement,
    Quality,
    choose,
    cross_validated,
    of_model,
    predictions,
)
from amc_env import Decision, DecisionKind
from amc_env.recorded_tasks.surrogate import TARGETS, located
from amc_env.scores.metric import Metric


@pytest.mark.parametrize("target", TARGETS)
def test_predictions_equal_those_of_scikit_learn(target):
    env, plans, accuracies = evaluated_hypercube(160)
    scores = accuracies - 1.1 if target == "log-loss" else accuracies
    model = fit_model(env.decisions, plans[:120], scores[:120], warp="log", target=target, n_fit=90)
    surrogate = model.fit(plans[:120], scores[:120])
    s = model.settings
    process = GaussianProcessRegressor(
        ConstantKernel(s.amplitude) * Matern(1.0, nu=2.5)
        + ConstantKernel(s.rough_amplitude) * HammingKernel(s.rough_length)
        + WhiteKernel(model.noise),
        optimizer=None,
    )
    scale = TARGETS[target]
    standard = (scale.forward(scores[:120]) - s.offset) / s.scale
    process.fit(located(s.coordinates, plans[:120]), standard)
    expected = scale.backward(
        s.offset + s.scale * process.predict(located(s.coordinates, plans))
    ).clip(*scale.bounds)
    np.testing.assert_allclose(predictions(surrogate, plans), expected, atol=1e-4)
    assert np.ptp(expected) > 0.05


def test_the_rough_kernel_falls_with_the_decisions_that_differ():
    x = np.array([[1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 0.0, 0.0], [9.0, 9.0, 9.0, 9.0]])
    two, four = np.exp(-2 / 1.5), np.exp(-4 / 1.5)
    kernel = HammingKernel(1.5)
    np.testing.assert_allclose(kernel(x), [[1, two, four], [two, 1, four], [four, four, 1]])
    np.testing.assert_allclose(kernel(x[:1], x[1:]), [[two, four]])
    gradient = kernel(x, eval_gradient=True)[1][:, :, 0]
    step = 1e-6
    higher, lower = (kernel.clone_with_theta(kernel.theta + s)(x) for s in (step, -step))
    np.testing.assert_allclose(gradient, (higher - lower) / (2 * step), atol=1e-6)


@pytest.mark.parametrize("target", TARGETS)
def test_targets_and_their_inverses_cancel_and_increase(target):
    score = np.linspace(0.0, 1.0, 101) - (target == "log-loss") * 1.0
    scaled = TARGETS[target].forward(score)
    assert np.isfinite(scaled).all()
    assert (np.diff(scaled) > 0.0).all()
    np.testing.assert_allclose(TARGETS[target].backward(scaled), score, atol=1e-12)


def test_perplexities_of_plans_that_leave_out_branches_are_predicted_well():
    decisions = [Decision(f"b{i}", DecisionKind.DEPTH, (0.0, 1.0), 1) for i in range(8)]
    rng = np.random.default_rng(0)
    plans = rng.integers(0, 2, (150, 8))
    plans = np.unique(plans, axis=0)
    cost = np.array([3.0, 0.2, 0.4, 0.1, 0.3, 0.2, 0.5, 1.0])
    lost = (1 - plans) @ cost + 0.5 * (1 - plans[:, 1]) * (1 - plans[:, 2])
    scores = -8.0 * np.exp(lost)  # from 8 to thousands
    first, second = choose(
        decisions, plans, scores, n_fit=80, metric=Metric("perplexity", higher_is_better=False)
    )
    assert (first.warp, first.target) == ("value", "log-loss")
    assert first.quality.top.spearman > 0.95
    assert second.target == "score"
    joint = [*decisions[:7], Decision("bits", DecisionKind.WEIGHT_BITS, (2, 4, 8), 1)]
    model = fit_model(joint, plans, scores, warp="log", target="log-loss", n_fit=40)
    steps = np.diff(model.settings.coordinates[7])
    assert steps[0] == pytest.approx(steps[1])
    assert predictions(model.fit(plans, scores), plans[:3]) == pytest.approx(scores[:3], rel=0.2)


def test_a_formula_is_predicted_well_where_it_was_not_seen():
    env, plans, accuracies = evaluated_hypercube(250)
    model = fit_model(env.decisions, plans, accuracies, warp="value", target="log-error", n_fit=150)
    quality = cross_validated(of_model(model), plans, accuracies, seed=0)
    assert quality.all.n == 250
    assert quality.all.spearman > 0.99
    assert quality.top.spearman > 0.9
    assert quality.top.rmse < 0.01


def test_held_out_plans_are_not_looked_at():
    env, plans, _ = evaluated_hypercube(200)
    noise = np.random.default_rng(0).uniform(0.2, 0.8, len(plans))
    model = fit_model(env.decisions, plans, noise, warp="value", target="accuracy", n_fit=100)
    eager = dataclasses.replace(model, noise=1e-6)  # reproduces what it has seen
    seen = Agreement.of(noise, predictions(eager.fit(plans, noise), plans))
    assert seen.spearman > 0.95
    assert abs(cross_validated(of_model(eager), plans, noise, seed=0).all.spearman) < 0.2


def test_agreement_by_hand():
    found = Quality.of(np.array([0.1, 0.2, 0.3, 0.4]), np.array([0.2, 0.1, 0.3, 0.8]))
    assert found.all.rmse == pytest.approx(np.sqrt((0.01 + 0.01 + 0 + 0.16) / 4))
    assert found.all.bias == pytest.approx(0.1)
    assert found.all.spearman == pytest.approx(0.8)
    assert found.top == Agreement(1, None, pytest.approx(0.4), pytest.approx(0.4))


@pytest.mark.parametrize("names", [("cube", "accuracy"), ("log", "cube")])
def test_unknown_names_are_rejected(names):
    env, plans, accuracies = evaluated_hypercube(10)
    with pytest.raises(ValueError, match="Expected a warp of"):
        fit_model(env.decisions, plans, accuracies, warp=names[0], target=names[1])


def test_equal_accuracies_are_nothing_to_fit_to():
    env, plans, accuracies = evaluated_hypercube(10)
    with pytest.raises(ValueError, match="different scores"):
        fit_model(env.decisions, plans, 0 * accuracies, warp="log", target="accuracy")


def test_another_metric_outside_its_record_is_not_clipped():
    env, plans, accuracies = evaluated_hypercube(30)
    model = fit_model(
        env.decisions, plans, 50.0 * accuracies, warp="value", target="score", n_fit=30
    )
    assert model.fit(plans, 50.0 * accuracies).predict(plans[0]) > 2.0
