"""Bits, and bits together with channels: budgets are exact, and older searches are recipes."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.networks.random_graphs import random_graph
from support.selection import examples

from amc_env import Budget, CompressionEnv, InfeasibleBudgetError
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.costs import COSTS, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.plan import Decision, DecisionKind
from amc_env.recorded_tasks.synthetic import SyntheticBitsLearner

GRIDS = ((2.0, 4.0, 8.0), (2.0, 3.0, 4.0), (4.0, 16.0), (8.0,))


@st.composite
def joint_problems(draw):
    """Channels and bits of a small network, interleaved, under one to three budgets."""
    graph, widths = random_graph(
        draw(st.integers(0, 10_000)), draw(st.integers(1, 2)), 4, draw(st.sampled_from([1, 2]))
    )
    decisions = list(widths)
    for layer in graph.layers[:2]:
        for kind in (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS):
            decisions.append(Decision(layer.name, kind, draw(st.sampled_from(GRIDS)), 10))
    decisions = draw(st.permutations(decisions))
    storage = StorageFormat(
        weight_bits={graph.layers[-1].name: 8.0}, codebook=draw(st.booleans()), bytes_per_layer=3.0
    )
    names = draw(st.lists(st.sampled_from(sorted(COSTS)), min_size=1, max_size=3, unique=True))
    costs = {name: make_cost(name, graph, decisions, storage) for name in names}
    low = [d.choices[0] for d in decisions]
    high = [d.choices[-1] for d in decisions]
    bounds = {}
    for name, cost in costs.items():
        ends = [min(1.0, cost(v) / cost.original(decisions)) for v in (low, high)]
        upper = min(1.0, ends[0] + draw(st.floats(0.0, 1.1)) * (ends[1] - ends[0]) + 1e-9)
        bounds[name] = (draw(st.sampled_from([0.0, 0.0, 0.7, 0.95])) * upper, upper)
    return Budget(**bounds), costs, decisions


@examples(150)
@given(joint_problems(), st.integers(0, 1000))
def test_feasible_values_are_exactly_those_that_brute_force_finds(problem, seed):
    budget, costs, decisions = problem
    original = {name: cost.original(decisions) for name, cost in costs.items()}
    plans = [
        values
        for values in itertools.product(*(d.choices for d in decisions))
        if budget.is_met({name: cost(values) / original[name] for name, cost in costs.items()})
    ]
    if not plans:
        with pytest.raises(InfeasibleBudgetError):
            FeasibleSet(budget, costs, decisions)
        return
    feasible = FeasibleSet(budget, costs, decisions)
    rng = np.random.default_rng(seed)
    prefix: list[float] = []
    for i, decision in enumerate(decisions):
        possible = sorted({p[i] for p in plans if list(p[:i]) == prefix})
        assert feasible.interval(prefix) == (possible[0], possible[-1])
        assert {feasible.nearest(prefix, choice) for choice in decision.choices} == set(possible)
        prefix.append(float(rng.choice(possible)))
    assert feasible.is_met(prefix)


def test_narrow_windows_on_two_costs_of_forty_decisions_are_met():
    learner = SyntheticBitsLearner(14, seed=2, channels=True)
    env = CompressionEnv(learner, "macs=0.49:0.5,bytes=0.095:0.1", action="absolute")
    actions = np.random.default_rng(0).random(env.n_decisions)
    assert env.budget.is_met(env.cost_ratio(env.decode(actions)))


def test_a_plan_within_the_budget_is_its_own_projection():
    env = CompressionEnv(SyntheticBitsLearner(6, channels=True), "macs=0.5,bytes=0.1")
    rng = np.random.default_rng(1)
    for _ in range(5):
        plan = env.decode(rng.random(env.n_decisions))
        assert env.project(plan.values_for(env.decisions)) == plan
    above = env.project([d.choices[-1] for d in env.decisions])
    assert env.budget.is_met(env.cost_ratio(above))


def bits_environment(budget, seed=0, n_layers=6, action_mapping="absolute"):
    """Weight bits alone, as PocketFlow and HAQ (k-means mode) search them."""
    learner = SyntheticBitsLearner(n_layers, seed)
    learner.decisions = tuple(d for d in learner.decisions if d.kind is DecisionKind.WEIGHT_BITS)
    storage = StorageFormat(weight_bits=learner.storage.weight_bits)
    learner.cost_models = {
        name: make_cost(name, learner.graph, learner.decisions, storage) for name in COSTS
    }
    learner.evaluate = lambda plan: 0.5
    return CompressionEnv(learner, budget, action=action_mapping)


def pocketflow_bits(requests, sizes, total, lowest, highest):
    """PocketFlow's rule: whatever is asked, enough is left for the lowest bits everywhere else."""
    chosen, used = [], 0
    for i, (request, size) in enumerate(zip(requests, sizes, strict=True)):
        bits = math.floor(request * (highest - lowest) + 0.5) + lowest
        remaining = sum(sizes[i:])
        bits = min(bits, lowest + math.floor((total - used - remaining * lowest) / size))
        bits = min(bits, highest)
        chosen.append(bits)
        used += bits * size
    return chosen


@examples(60)
@given(st.integers(0, 10_000), st.integers(3, 7), st.floats(0.0, 1.0))
def test_the_absolute_action_mapping_chooses_the_bits_that_pocketflow_chooses(
    seed, n_layers, generosity
):
    learner = SyntheticBitsLearner(n_layers, seed % 7)
    weights = [layer.weights(learner.graph.full()) for layer in learner.graph.layers]
    sizes = weights[1:-1]
    total = math.floor((2 + 6 * generosity) * sum(sizes))
    fixed = 8 * (weights[0] + weights[-1])
    env = bits_environment(
        Budget(mean_bits=(fixed + total) / sum(weights) / 32), seed % 7, n_layers
    )
    requests = np.random.default_rng(seed).random(len(sizes)).astype(np.float32)
    expected = pocketflow_bits(requests.tolist(), sizes, total, 2, 8)
    assert env.decode(requests).values_for(env.decisions) == expected


def haq_wall(bits, over, lowest):
    """HAQ's ``_final_action_wall``: sweeps of one bit less from the last layer, until it fits."""
    bits = list(bits)
    while over(bits) and any(b > lowest for b in bits):
        for i in reversed(range(len(bits))):
            if bits[i] > lowest:
                bits[i] -= 1
            if not over(bits):
                return bits
    return bits


@pytest.mark.parametrize("budget", ["mean_bits=3/32", "mean_bits=5/32", "bytes=0.12", "bops=1/9"])
def test_what_haqs_wall_reaches_is_feasible_here_and_never_needs_a_wall(budget):
    env = bits_environment(budget)
    name, (_, upper) = next(iter(env.budget.bounds.items()))
    cost, original = env.costs[name], env.original_cost[name]

    def over(bits):
        return cost(bits) / original > upper

    rng = np.random.default_rng(3)
    for _ in range(20):
        requests = rng.integers(2, 9, env.n_decisions).astype(float).tolist()
        walled = haq_wall(requests, over, 2)
        assert not over(walled)
        assert env.project(walled).values_for(env.decisions) == walled
        prefix: list[float] = []
        for bits in walled:
            low, high = env._feasible.interval(prefix)
            assert low <= bits <= high
            prefix.append(bits)
        mine = env.project(requests).values_for(env.decisions)
        assert not over(mine)
        if not over(requests):
            assert mine == requests


def test_a_lower_bound_above_what_the_bits_can_reach_says_so():
    with pytest.raises(InfeasibleBudgetError, match=r"bytes 0\.\d+ to 0\.2\d+\. Even the largest"):
        bits_environment("bytes=0.5:0.9")
    assert bits_environment("bytes=0.9").uniform_plan()


def test_an_upper_bound_above_the_largest_plan_does_not_bind():
    env = bits_environment("bytes=0.9")
    assert env._feasible.balanced(()) == 1.0
    assert env.uniform_plan().values_for(env.decisions) == [8.0] * env.n_decisions


def test_four_mean_bits_are_the_uniform_plan_of_four_bits():
    learner = SyntheticBitsLearner(4)
    names = [layer.name for layer in learner.graph.layers]
    learner.decisions = tuple(
        Decision(n, DecisionKind.WEIGHT_BITS, (2.0, 4.0, 8.0), 1) for n in names
    )
    learner.cost_models = {}
    env = CompressionEnv(learner, "mean_bits=4/32")
    assert env.uniform_plan().values_for(env.decisions) == [4.0] * len(names)
    assert env.cost_ratio(env.uniform_plan())["mean_bits"] == 4 / 32


def best_of_sums(tables, limit):
    """Dynamic programming: the least damage of one option per layer within a sum of costs."""
    frontier = [(0.0, 0.0)]
    for options in tables:
        merged = sorted((c + x, d + y) for c, d in frontier for x, y in options if c + x <= limit)
        frontier, least = [], math.inf
        for cost, damage in merged:
            if damage < least:
                frontier.append((cost, damage))
                least = damage
    return frontier[-1][1]


@pytest.mark.parametrize("seed", range(3))
def test_dynamic_programming_finds_the_optimum_of_the_synthetic_bits(seed):
    learner = SyntheticBitsLearner(4, seed, bits=(2, 4, 8))
    env = CompressionEnv(learner, "mean_bits=4.5/32")
    layers = [d for d in learner.decisions if d.kind is DecisionKind.WEIGHT_BITS]
    weights = {x.name: x.weights(learner.graph.full()) for x in learner.graph.layers}
    fixed = sum(8 * n for name, n in weights.items() if name not in {d.target for d in layers})
    tables = [
        [(d.size * b, learner.layer_noise(d.key, b)) for b in d.choices] for d in layers
    ]  # activations do not count in mean bits, so their best choice is the largest
    free = sum(
        learner.layer_noise(d.key, 8.0)
        for d in learner.decisions
        if d.kind is DecisionKind.ACTIVATION_BITS
    )
    damage = free + best_of_sums(tables, 4.5 * sum(weights.values()) - fixed)
    best = max(
        env.outcome(plan, learner.evaluate(plan)).reward
        for values in itertools.product(*(d.choices for d in env.decisions))
        if env.budget.is_met(env.cost_ratio(plan := env_plan(env, values)))
    )
    assert best == pytest.approx(0.92 * math.exp(-damage), rel=1e-12)


def env_plan(env, values):
    from amc_env import CompressionPlan

    return CompressionPlan.from_values(env.decisions, values)
