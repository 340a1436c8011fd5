"""Which budgets can be met is decided exactly, or said to be undecided."""

from fractions import Fraction

import numpy as np
import pytest

from amc_env import Budget, CompressionEnv, CompressionPlan, InfeasibleBudgetError, make_cost
from amc_env.budgets.feasible import FeasibleSet
from amc_env.graph import ChannelGroup, LayerGraph, LayerSpec, Width
from amc_env.plan import Decision, DecisionKind
from amc_env.recorded_tasks.synthetic import (
    SyntheticBitsLearner,
    SyntheticDensityLearner,
    SyntheticLearner,
)


def chain(rng, n, units):
    """A chain of linear layers with random widths, every unit a choice of its own."""
    sizes = [int(s) for s in rng.integers(2, units + 1, size=n)]
    layers, groups, previous = [], [], Width(int(rng.integers(1, 6)))
    for i, size in enumerate(sizes):
        width = Width(0, ((f"g{i}", 1),))
        layers.append(LayerSpec(f"g{i}", "linear", previous, width, positions=1))
        groups.append(ChannelGroup(f"g{i}", size, (f"g{i}",), ()))
        previous = width
    layers.append(LayerSpec("out", "linear", previous, Width(int(rng.integers(1, 6)))))
    decisions = [
        Decision(f"g{i}", DecisionKind.KEEP_RATIO, tuple(k / s for k in range(1, s + 1)), s)
        for i, s in enumerate(sizes)
    ]
    return LayerGraph(tuple(layers), tuple(groups)), decisions


def whole_costs(graph, decisions, values):
    """MACs and parameters in integers."""
    kept = {d.target: round(v * d.size) for d, v in zip(decisions, values, strict=True)}
    macs = sum(int(x.macs(kept)) for x in graph.layers)
    return {"macs": macs, "params": macs}


@pytest.mark.parametrize("seed", range(60))
def test_every_window_on_an_existing_plan_is_feasible_and_no_other(seed):
    rng = np.random.default_rng(seed)
    graph, decisions = chain(rng, int(rng.integers(1, 4)), 7)
    costs = {"macs": make_cost("macs", graph, decisions)}
    plans = np.array(np.meshgrid(*[d.choices for d in decisions])).T.reshape(-1, len(decisions))
    macs = [whole_costs(graph, decisions, p)["macs"] for p in plans]
    original = max(macs)
    for k in rng.permutation(original)[:20] + 1:
        text = f"{k}/{original}"
        for budget in (
            Budget.parse(f"macs={text}:{text}"),
            Budget(macs=(k / original, k / original)),
            Budget(macs=(Fraction(int(k), original),) * 2),
        ):
            if int(k) not in macs:
                with pytest.raises(InfeasibleBudgetError, match="No plan meets"):
                    FeasibleSet(budget, costs, decisions)
                continue
            feasible = FeasibleSet(budget, costs, decisions)
            chosen: list[float] = []
            for _ in decisions:
                chosen.append(feasible.nearest(chosen, float(rng.random())))
            assert whole_costs(graph, decisions, chosen)["macs"] == k


def test_a_bound_between_two_costs_admits_the_lower_one_only():
    graph, decisions = chain(np.random.default_rng(0), 2, 7)
    costs = {"macs": make_cost("macs", graph, decisions)}
    original = whole_costs(graph, decisions, [1.0, 1.0])["macs"]
    below = np.nextafter(1.0, 0.0)
    feasible = FeasibleSet(Budget(macs=below), costs, decisions)
    top = feasible.interval([1.0])[1]
    assert whole_costs(graph, decisions, [1.0, top])["macs"] < original


@pytest.mark.parametrize("name", ["macs", "params", "bytes", "bops"])
def test_costs_of_plans_on_the_grid_are_whole_numbers(name):
    rng = np.random.default_rng(1)
    for seed in range(8):
        learner = SyntheticLearner(6, seed, round_to=3)
        cost = make_cost(name, learner.graph, learner.decisions)
        for _ in range(20):
            assert cost([rng.choice(d.choices) for d in learner.decisions]).is_integer()


@pytest.mark.parametrize("density", ["0.1", "0.3", "7/50"])
def test_a_uniform_density_meets_the_bound_that_it_is(density):
    learner = SyntheticDensityLearner(9)
    names = [x.name for x in learner.graph.layers]
    decisions = tuple(
        Decision(n, DecisionKind.DENSITY, tuple(k / 50 for k in range(1, 51)), 100) for n in names
    )
    learner.decisions = decisions
    learner.evaluate = lambda plan: 0.5
    env = CompressionEnv(learner, f"density={density}")
    value = float(Fraction(density))
    plan = CompressionPlan.from_values(decisions, [value] * len(decisions))
    assert env.evaluate(plan).feasible


def window_on_a_plan(learner, names, rng):
    """A random plan, and the budget that costs exactly as much as it."""
    free = CompressionEnv(learner, "macs=1.0")
    values = [float(rng.choice(d.choices)) for d in free.decisions]
    plan = CompressionPlan.from_values(free.decisions, values)
    ratio = free.cost_ratio(plan)
    return plan, Budget(**{name: (ratio[name], ratio[name]) for name in names})


@pytest.mark.parametrize("seed", range(3))
def test_large_windows_on_a_sum_over_decisions_are_met(seed):
    rng = np.random.default_rng(seed)
    learner = SyntheticBitsLearner(20, seed)
    plan, budget = window_on_a_plan(learner, ["mean_bits"], rng)
    env = CompressionEnv(learner, budget)
    assert env.evaluate(plan).feasible
    assert env.evaluate(env.project(rng.random(env.n_decisions))).feasible


def test_the_table_of_sums_answers_as_brute_force_does(monkeypatch):
    monkeypatch.setattr("amc_env.budgets.completion.MAX_BOXES", 1)
    rng = np.random.default_rng(5)
    for _ in range(40):
        graph, decisions = chain(rng, 3, 6)
        costs = {name: make_cost(name, graph, decisions) for name in ("macs", "params")}
        plans = np.array(np.meshgrid(*[d.choices for d in decisions])).T.reshape(-1, 3)
        macs = np.array([costs["macs"](p) for p in plans]) / costs["macs"]([1.0] * 3)
        middle = rng.choice(macs)
        budget = Budget(macs=(middle, min(1.0, middle * 1.02)), params=(0.0, middle * 1.01 + 0.01))
        met = plans[[budget.is_met({"macs": m, "params": m}) for m in macs]]
        feasible = FeasibleSet(budget, costs, decisions)
        for start in met[:4]:
            for n in range(3):
                left = met[(met[:, :n] == start[:n]).all(axis=1)][:, n]
                assert feasible.interval(list(start[:n])) == (left.min(), left.max())


def test_what_is_not_decided_is_not_called_infeasible():
    learner = SyntheticBitsLearner(14, channels=True)
    _, budget = window_on_a_plan(learner, ["macs", "bytes"], np.random.default_rng(3))
    with pytest.raises(InfeasibleBudgetError, match="was found within the limit"):
        CompressionEnv(learner, budget)
