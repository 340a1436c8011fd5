"""Damage curves and a budget become the plan of least damage, as exhaustive search finds it."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from amc_compress.agents import AgentError, Sensitivity
from amc_compress.agents.curves.allocation import (
    allocate,
    allocate_by_threshold,
    checked_curves,
    polished,
)
from amc_compress.agents.curves.sensitivity import interpolated
from amc_env import CompressionEnv, CompressionPlan
from amc_env.costs.cost_terms import cost_terms, evaluate
from amc_env.recorded_tasks.synthetic import SyntheticLearner, make_synthetic


def curves_of(env: CompressionEnv) -> list[np.ndarray]:
    return list(checked_curves(env, env.learner.layer_errors(), "layer_errors()"))


def damage(env: CompressionEnv, curves: list[np.ndarray], plan: CompressionPlan) -> float:
    values = plan.values_for(env.decisions)
    index = [d.choices.index(v) for d, v in zip(env.decisions, values, strict=True)]
    return sum(float(curve[k]) for curve, k in zip(curves, index, strict=True))


def least_damage(env: CompressionEnv, curves: list[np.ndarray]) -> float:
    best = np.inf
    for choice in product(*(range(len(d.choices)) for d in env.decisions)):
        values = [d.choices[k] for d, k in zip(env.decisions, choice, strict=True)]
        total = sum(float(c[k]) for c, k in zip(curves, choice, strict=True))
        if total < best and env.budget.is_met(
            env.cost_ratio(CompressionPlan.from_values(env.decisions, values))
        ):
            best = total
    return best


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("budget", ["macs=0.3", "macs=0.5", "macs=0.55:0.6"])
def test_products_of_widths_are_solved_as_enumeration_solves_them(seed, budget):
    env = make_synthetic(n_layers=3, seed=seed, budget=budget)
    curves = curves_of(env)
    found = damage(env, curves, allocate(env, curves))
    assert found == pytest.approx(least_damage(env, curves), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_sums_over_layers_are_solved_as_enumeration_solves_them(seed):
    env = make_synthetic(kind="bits", n_layers=4, seed=seed, budget="mean_bits=5/32")
    curves = curves_of(env)
    found = damage(env, curves, allocate(env, curves))
    assert found == pytest.approx(least_damage(env, curves), abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_costs_of_channels_and_bits_together_come_near_the_optimum(seed):
    from amc_env.recorded_tasks.synthetic import SyntheticBitsLearner

    learner = SyntheticBitsLearner(3, seed, channels=True, bits=(2, 4, 8), round_to=16)
    env = CompressionEnv(learner, "macs=0.6,bytes=0.12")
    curves = curves_of(env)
    optimum = least_damage(env, curves)
    assert damage(env, curves, allocate(env, curves)) <= 1.15 * optimum + 1e-3


@pytest.mark.parametrize("kind", ["channels", "bits", "density", "joint"])
def test_large_problems_stay_in_the_budget_and_beat_the_uniform_plan(kind):
    env = make_synthetic(kind=kind, n_layers=10, seed=5)
    curves = curves_of(env)
    uniform = damage(env, curves, env.uniform_plan())
    exact, threshold = allocate(env, curves), allocate_by_threshold(env, curves)
    for plan in (exact, threshold):
        assert env.budget.is_met(env.cost_ratio(plan))
    assert damage(env, curves, exact) < 0.9 * uniform
    assert damage(env, curves, exact) <= damage(env, curves, threshold) + 1e-6


def test_the_threshold_is_the_smallest_largest_damage():
    env = make_synthetic(n_layers=3, seed=2)
    curves = curves_of(env)

    def largest(index):
        return max(float(c[k]) for c, k in zip(curves, index, strict=True))

    within = [
        index
        for index in product(*(range(len(d.choices)) for d in env.decisions))
        if env.budget.is_met(
            env.cost_ratio(
                CompressionPlan.from_values(
                    env.decisions,
                    [d.choices[k] for d, k in zip(env.decisions, index, strict=True)],
                )
            )
        )
    ]
    values = allocate_by_threshold(env, curves).values_for(env.decisions)
    found = [d.choices.index(v) for d, v in zip(env.decisions, values, strict=True)]
    assert largest(found) == pytest.approx(min(largest(index) for index in within))


def test_polishing_never_adds_damage_and_keeps_the_budget():
    env = make_synthetic(n_layers=6, seed=4)
    curves = curves_of(env)
    start = env.uniform_plan().values_for(env.decisions)
    index = [d.choices.index(v) for d, v in zip(env.decisions, start, strict=True)]
    after = polished(env, curves, index)
    plan = CompressionPlan.from_values(
        env.decisions, [d.choices[k] for d, k in zip(env.decisions, after, strict=True)]
    )
    assert env.budget.is_met(env.cost_ratio(plan))
    assert damage(env, curves, plan) <= damage(env, curves, env.uniform_plan())


class TestCostTerms:
    def grids(self, env):
        return [np.array(d.choices) for d in env.decisions]

    @pytest.mark.parametrize(
        ("kind", "cost", "exact", "pairs"),
        [
            ("channels", "macs", True, 4),
            ("channels", "params", True, 4),
            ("bits", "mean_bits", True, 0),
            ("joint", "bytes", False, None),
        ],
    )
    def test_what_is_exact_is_said_to_be(self, kind, cost, exact, pairs):
        env = make_synthetic(kind=kind, n_layers=5, seed=1)
        terms = cost_terms(env.costs[cost], self.grids(env), np.random.default_rng(0))
        assert terms.is_exact is exact
        if pairs is not None:
            assert len(terms.pair) == pairs

    def test_the_sum_is_the_cost_of_any_plan(self):
        env = make_synthetic(n_layers=5, seed=1)
        grids = self.grids(env)
        terms = cost_terms(env.costs["macs"], grids, np.random.default_rng(0))
        rng = np.random.default_rng(7)
        for _ in range(20):
            index = [int(rng.integers(len(grid))) for grid in grids]
            values = np.array([grid[k] for grid, k in zip(grids, index, strict=True)])
            assert evaluate(terms, index) == pytest.approx(env.costs["macs"](values))


class TestCurves:
    def test_missing_or_damaged_curves_are_named(self):
        env = make_synthetic(n_layers=3)
        with pytest.raises(AgentError, match=env.decisions[0].key):
            checked_curves(env, {}, "layer_errors()")
        bad = {**env.learner.layer_errors(), env.decisions[1].key: [np.nan, 0.0]}
        with pytest.raises(AgentError, match=env.decisions[1].key):
            checked_curves(env, bad, "layer_errors()")

    def test_curves_never_rise_with_the_choice_and_end_at_zero(self):
        env = make_synthetic(n_layers=1, seed=0)
        n = len(env.decisions[0].choices)
        noisy = np.linspace(1.0, 0.0, n) + 0.3 * np.random.default_rng(0).standard_normal(n)
        (curve,) = checked_curves(env, {env.decisions[0].key: noisy}, "x")
        assert (np.diff(curve) <= 0).all()
        assert curve[-1] == 0.0

    def test_interpolation_goes_through_monotone_points_and_never_rises(self):
        curve = interpolated([0, 3, 6], [0.9, 0.4, 0.1], 10)
        assert curve[[0, 3, 6, 9]] == pytest.approx([0.9, 0.4, 0.1, 0.0])
        assert (np.diff(curve) <= 1e-12).all()

    def test_noise_is_evened_out(self):
        curve = interpolated([0, 1, 2], [0.4, 0.5, 0.1], 4)
        assert curve == pytest.approx([0.45, 0.45, 0.1, 0.0])

    def test_a_single_choice_has_no_damage(self):
        assert interpolated([], [], 1).tolist() == [0.0]


class TestSensitivity:
    def test_probes_change_one_decision_each_and_are_counted(self):
        env = make_synthetic(n_layers=4, seed=3)
        result = Sensitivity().search(env, 30, seed=0)
        probes = [t for t in result.trials if t.source == "probe"]
        full = CompressionPlan.full(env.decisions)
        for trial in probes:
            assert sum(trial.plan[key] != full[key] for key in full) == 1
        # (30 - uniform - the plan) // 4 for each decision, where its grid has so many.
        assert len(probes) == sum(min(7, len(d.choices) - 1) for d in env.decisions)
        assert len(result.trials) == len(probes) + 2

    def test_without_evaluations_for_every_decision_the_uniform_plan_is_returned(self):
        env = make_synthetic(n_layers=6, seed=3)
        result = Sensitivity().search(env, 6, seed=0)
        assert result.plan == env.uniform_plan()
        assert len(result.trials) == 1

    def test_an_exact_curve_gives_the_optimum_of_a_separable_problem(self):
        env = CompressionEnv(SyntheticLearner(3, 1, coupling=0.0), "macs=0.5")
        curves = curves_of(env)
        result = Sensitivity(points=64).search(env, 200, seed=0)
        assert damage(env, curves, result.plan) == pytest.approx(
            least_damage(env, curves), abs=1e-4
        )

    def test_a_learner_without_curves_is_told_what_it_lacks(self):
        class Bare:
            def __init__(self, learner):
                self.graph, self.decisions = learner.graph, learner.decisions
                self.original_score, self.evaluate = learner.original_score, learner.evaluate

        env = CompressionEnv(Bare(SyntheticLearner(3)), "macs=0.5")
        with pytest.raises(AgentError, match=r"gradient_scores\(\).*Bare"):
            Sensitivity(curves="gradient_scores").search(env, 5, seed=0)

    @pytest.mark.parametrize("options", [{"curves": "x"}, {"allocation": "x"}, {"points": 0}])
    def test_senseless_settings_are_rejected(self, options):
        with pytest.raises(ValueError, match="Expected"):
            Sensitivity(**options)
