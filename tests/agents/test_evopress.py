"""EvoPress: level switches, elitism, and nothing evaluated twice."""

import numpy as np
import pytest

from amc_compress.agents import EvoPress, LocalSearch
from amc_compress.agents.heuristics.evopress import switched
from amc_compress.agents.testing.contract import make_env, watch
from amc_env import CompressionEnv
from amc_env.recorded_tasks.synthetic import SyntheticLearner, make_synthetic

TASKS = [
    ("channels", None),
    ("channels", "macs=0.45:0.5"),
    ("bits", None),
    ("joint", None),
    ("joint", "macs=0.4:0.5,bytes=0.08:0.1"),
    ("density", None),
    ("depth", None),
    ("depth", "macs=0.5,params=0.6"),
]


def levels(env, plan):
    values = plan.values_for(env.decisions)
    return np.array([d.choices.index(v) for d, v in zip(env.decisions, values, strict=True)])


@pytest.mark.parametrize(("kind", "budget"), TASKS)
def test_offspring_keep_the_budget_and_pay_for_what_they_gain(kind, budget):
    env = make_synthetic(6, 2, budget=budget, kind=kind)
    rng = np.random.default_rng(0)
    plan, changed = env.uniform_plan(), 0
    for i in range(20):
        child = switched(env, plan, rng, 1 + i % 3)
        assert env.budget.is_met(env.cost_ratio(child))
        moved = levels(env, child) - levels(env, plan)
        if i % 3 == 0:  # of several switches one may take back another
            assert not moved.any() or (moved.max() > 0 > moved.min())
        changed += bool(moved.any())
        plan = child
    assert changed >= 15


def test_where_levels_cost_the_same_a_switch_is_a_level_for_a_level():
    learner = SyntheticLearner(5, 0)
    sizes = [d.size for d in learner.decisions]

    def units(values):  # of four channels, which are a level
        return sum(round(v * size / 4) for v, size in zip(values, sizes, strict=True))

    env = CompressionEnv(learner, "units=0.5", cost_models={"units": units})
    rng = np.random.default_rng(0)
    plan = switched(env, env.uniform_plan(), rng, 1)
    for _ in range(10):
        moved = levels(env, switched(env, plan, rng, 1)) - levels(env, plan)
        assert sorted(moved) == [-1, 0, 0, 0, 1]


@pytest.mark.parametrize("offspring", [1, 4])
def test_every_generation_descends_from_the_best_so_far(offspring, monkeypatch):
    parents = []

    def noted(env, plan, rng, count):
        parents.append(plan)
        return switched(env, plan, rng, count)

    monkeypatch.setattr("amc_compress.agents.heuristics.evopress.switched", noted)
    result = EvoPress(offspring=offspring).search(make_synthetic(6, 2), 41, seed=0)
    reward = {trial.plan: trial.reward for trial in result.trials}
    known = [reward[plan] for plan in dict.fromkeys(parents)]
    assert len(known) > 1
    assert known == sorted(known)
    # The last plan was proposed after 40 others; whole generations of these chose its parent.
    complete = result.trials[: 1 + (39 // offspring) * offspring]
    assert known[-1] == max(trial.reward for trial in complete)


@pytest.mark.parametrize("parallel", [1, 4])
@pytest.mark.parametrize("agent", [EvoPress, LocalSearch])
def test_no_plan_is_evaluated_twice_and_a_small_problem_is_exhausted(agent, parallel):
    env = make_synthetic(2, 1, kind="bits", budget="mean_bits=3/32")
    asked = watch(env).asked
    result = agent(finalists=0).search(env, 400, seed=0, parallel=parallel)
    assert len(asked) == len(set(asked)) == len(result.trials) < 400


def test_plans_that_failed_are_not_proposed_again():
    env = make_env()
    first = EvoPress(finalists=0).search(env, 12, seed=0)
    env = make_env()
    failing = [trial.plan for trial in first.trials[1:5]]
    asked = watch(env, failing=failing).asked
    result = EvoPress(finalists=0).search(env, 24, seed=0)
    assert len(asked) == len(set(asked)) == 24
    assert sum(bool(trial.failure) for trial in result.trials) == 4
    assert not result.best_trial.failure


@pytest.mark.parametrize("options", [{"offspring": 0}, {"switches": 0}])
def test_senseless_options_are_rejected(options):
    with pytest.raises(ValueError, match="offspring >= 1 and switches >= 1"):
        EvoPress(**options)
