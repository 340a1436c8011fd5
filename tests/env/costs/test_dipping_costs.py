"""Costs that fall when a decision grows, and cost models that answer nonsense."""

import numpy as np
import pytest

from amc_compress.agents import make_agent
from amc_env import ArgumentError, CompressionEnv, EvaluationError, InfeasibleBudgetError
from amc_env.recorded_tasks.synthetic import SyntheticLearner

BUDGET = 0.6
AGENTS = (
    "random", "local", "evolution", "evopress", "uniform", "deep-heavy", "gradient", "sensitivity"
)  # fmt: skip


def dipping(seed, coupled):
    """A random cost in which some widths are slower than the next wider one."""
    rng = np.random.default_rng(seed)
    depth, waves = rng.uniform(0.2, 1.5), rng.uniform(4, 14)

    def cost(values):
        v = np.asarray(values, dtype=float)
        bumps = v + depth * np.abs(np.sin(waves * np.pi * v))
        # The product of all of them is no sum over pairs.
        return float(bumps.sum() + (np.prod(0.5 + bumps) if coupled else 0.0))

    return cost


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_every_agent_holds_the_budget_of_a_cost_with_dips(seed, coupled):
    cost = dipping(seed, coupled)
    env = CompressionEnv(SyntheticLearner(4, seed), f"lat={BUDGET}", cost_models={"lat": cost})
    original = cost([d.choices[-1] for d in env.decisions])
    for name in AGENTS:
        result = make_agent(name).search(env, 8, seed)
        inside = [t for t in result.trials if t.within_budget]
        for trial in [*inside, result.best_trial]:
            assert cost(trial.plan.values_for(env.decisions)) / original <= BUDGET


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_every_learning_agent_holds_the_budget_of_a_cost_with_dips(seed):
    cost = dipping(seed, coupled=False)
    env = CompressionEnv(SyntheticLearner(5, seed), f"lat={BUDGET}", cost_models={"lat": cost})
    original = cost([d.choices[-1] for d in env.decisions])
    for name in ("ddpg", "ddpg-one-shot", "td3", "sac", "tpe", "gp", "cmaes", "nsga2"):
        result = make_agent(name).search(env, 14, seed)
        for trial in result.trials:
            within = cost(trial.plan.values_for(env.decisions)) / original <= BUDGET
            assert within == trial.within_budget or not within
            assert within or not trial.within_budget


@pytest.mark.parametrize("seed", range(6))
def test_feasible_values_of_a_sum_with_dips_are_those_that_brute_force_finds(seed):
    cost, rng = dipping(seed, coupled=False), np.random.default_rng(seed)
    learner = SyntheticLearner(3, seed, round_to=8)
    grids = [d.choices for d in learner.decisions]
    plans = np.array(np.meshgrid(*grids)).T.reshape(-1, 3)
    ratios = np.array([cost(p) for p in plans]) / cost([g[-1] for g in grids])
    upper = float(np.quantile(ratios, rng.uniform(0.05, 0.6)))
    env = CompressionEnv(learner, f"lat={min(upper, 1.0)!r}", cost_models={"lat": cost})
    met = plans[ratios <= min(upper, 1.0)]
    for start in met[:: max(1, len(met) // 5)]:
        for n in range(3):
            left = met[(met[:, :n] == start[:n]).all(axis=1)][:, n]
            assert env._feasible.interval(list(start[:n])) == (left.min(), left.max())


def test_an_infeasible_budget_names_the_dip():
    with pytest.raises(InfeasibleBudgetError, match=r"lat falls from .* when conv\d:keep_ratio"):
        CompressionEnv(
            SyntheticLearner(3), "lat=0.0001", cost_models={"lat": dipping(0, coupled=True)}
        )


@pytest.mark.parametrize("answer", [float("nan"), float("inf"), -1.0, None, "3", [1.0, 2.0]])
def test_answers_of_cost_models_are_checked_where_they_enter(answer):
    if answer == "3":
        answer = "three"
    with pytest.raises(EvaluationError, match="cost model 'lat' to return a finite number"):
        CompressionEnv(SyntheticLearner(3), "macs=0.5", cost_models={"lat": lambda v: answer})
    later = lambda v: 1.0 if np.all(np.asarray(v) == 1.0) else answer  # noqa: E731
    env = CompressionEnv(SyntheticLearner(3), "macs=0.5", cost_models={"lat": later})
    with pytest.raises(EvaluationError, match="for the values"):
        env.evaluate(env.uniform_plan())


def test_a_cost_of_nothing_has_no_ratios():
    with pytest.raises(EvaluationError, match="'lat' of the original network"):
        CompressionEnv(SyntheticLearner(3), "macs=0.5", cost_models={"lat": lambda v: 0.0})


def test_what_cannot_be_called_is_no_cost_model():
    with pytest.raises(ArgumentError, match="cost_models"):
        CompressionEnv(SyntheticLearner(3), "macs=0.5", cost_models={"lat": 3})
