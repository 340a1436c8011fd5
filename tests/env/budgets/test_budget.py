"""The budget's promise: whatever is asked, the final plan meets every bound, above and below."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.networks.random_graphs import random_graph
from support.selection import examples

from amc_env.budgets.budget import Budget
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.costs import make_cost
from amc_env.errors import InfeasibleBudgetError
from amc_env.plan import Decision, DecisionKind

SMALL, FINE = st.integers(1, 4), st.sampled_from([1, 2])


def _brute_force(budget, costs, decisions):
    """All complete plans that meet the budget, by enumeration."""
    full = [d.choices[-1] for d in decisions]
    return [
        values
        for values in itertools.product(*(d.choices for d in decisions))
        if budget.is_met({n: costs[n](values) / costs[n](full) for n in budget.bounds})
    ]


def _bounds(draw, name):
    upper = draw(st.floats(0.05, 1.0))
    lower = draw(st.sampled_from([0.0, 0.0, 0.5, 0.9, 0.97])) * upper
    return name, (lower, upper)


@st.composite
def problems(draw, n_groups=SMALL, largest=6, round_to=FINE):
    graph, decisions = random_graph(
        draw(st.integers(0, 10_000)), draw(n_groups), largest, draw(round_to)
    )
    names = draw(st.sampled_from([("macs",), ("bytes",), ("macs", "params")]))
    budget = Budget(**dict(_bounds(draw, name) for name in names))
    return (
        budget,
        {n: make_cost(n, graph, decisions) for n in ("macs", "params", "bytes")},
        decisions,
    )


@examples(150)
@given(problems())
def test_feasible_values_are_exactly_those_that_brute_force_finds(problem):
    budget, costs, decisions = problem
    plans = _brute_force(budget, costs, decisions)
    if not plans:
        with pytest.raises(InfeasibleBudgetError):
            FeasibleSet(budget, costs, decisions)
        return
    feasible = FeasibleSet(budget, costs, decisions)
    prefix: list[float] = []
    for i, decision in enumerate(decisions):
        possible = sorted({p[i] for p in plans if list(p[:i]) == prefix})
        assert feasible.interval(prefix) == (possible[0], possible[-1])
        offered = {feasible.nearest(prefix, choice) for choice in decision.choices}
        assert offered == set(possible)
        prefix.append(possible[len(possible) // 2])


@examples(60)
@given(
    problems(n_groups=st.integers(1, 12), largest=64, round_to=st.sampled_from([1, 4, 8])),
    st.sampled_from(["random", "greedy", "lazy", "contrary"]),
    st.integers(0, 1000),
)
def test_every_agent_ends_inside_every_bound(problem, kind, seed):
    budget, costs, decisions = problem
    try:
        feasible = FeasibleSet(budget, costs, decisions)
    except InfeasibleBudgetError:
        return
    rng = np.random.default_rng(seed)
    values: list[float] = []
    for i in range(len(decisions)):
        request = {"random": rng.random(), "greedy": 1.0, "lazy": 0.0, "contrary": float(i % 2)}[
            kind
        ]
        values.append(feasible.nearest(values, request))
    ratios = {name: feasible.ratio(name, np.array(values)) for name in budget.bounds}
    assert budget.is_met(ratios), ratios


def test_balanced_ratio_spends_exactly_what_is_left():
    graph, decisions = random_graph(3, 4, 64, 1)
    cost = make_cost("macs", graph, decisions)
    feasible = FeasibleSet(Budget(macs=0.6), {"macs": cost}, decisions)
    ratio = feasible.balanced(())
    assert feasible.ratio("macs", np.full(4, ratio)) == pytest.approx(0.6, abs=1e-6)


def test_an_unreachable_budget_names_the_reachable_range():
    graph, decisions = random_graph(0, 3, 8, 2)
    cost = make_cost("params", graph, decisions)
    lowest = cost([d.choices[0] for d in decisions]) / cost([d.choices[-1] for d in decisions])
    with pytest.raises(InfeasibleBudgetError, match=rf"params {lowest:.4f} to 1\.0000"):
        FeasibleSet(Budget(params=lowest / 2), {"params": cost}, decisions)


def test_a_cost_that_no_decision_changes_is_named():
    decision = Decision("a", DecisionKind.WEIGHT_BITS, (2.0, 8.0), 2)

    class Fixed:
        def __call__(self, values):
            return 1.0

        def original(self, decisions):
            return 1.0

    costs = {"macs": Fixed(), "bytes": lambda v: float(v[0])}
    with pytest.raises(InfeasibleBudgetError, match="No decision changes macs, so no") as caught:
        FeasibleSet(Budget(macs=0.5, bytes=0.5), costs, [decision])
    assert "round_to" not in str(caught.value)
    FeasibleSet(Budget(macs=1.0, bytes=0.5), costs, [decision])  # always met
    # Where the bound of the fixed cost is met, the other one is at fault.
    with pytest.raises(InfeasibleBudgetError, match="Relax the budget"):
        FeasibleSet(Budget(macs=1.0, bytes=0.1), costs, [decision])


def test_a_window_between_two_grid_points_is_an_error():
    decision = Decision("a", DecisionKind.KEEP_RATIO, (0.5, 1.0), 2)
    with pytest.raises(InfeasibleBudgetError, match="No plan meets"):
        FeasibleSet(Budget(cost=(0.6, 0.9)), {"cost": lambda v: float(v[0])}, [decision])


def test_a_bound_without_cost_model_names_the_models():
    with pytest.raises(ValueError, match=r"No cost model for \['energy'\]; available: \['macs'\]"):
        FeasibleSet(Budget(energy=0.5), {"macs": lambda v: 1.0}, [])


@pytest.mark.parametrize("bad", [0.0, -0.1, 1.1, float("nan"), (0.6, 0.5), (-0.1, 0.5)])
def test_bounds_outside_zero_and_one_are_rejected(bad):
    with pytest.raises(ValueError, match="0 <= lower <= upper <= 1"):
        Budget(macs=bad)


def test_an_empty_budget_is_rejected():
    with pytest.raises(ValueError, match="at least one bound"):
        Budget()


def test_text_form_round_trips():
    budget = Budget.parse("macs=0.45:0.5, bytes=0.3")
    assert budget == Budget(macs=(0.45, 0.5), bytes=0.3)
    assert Budget.parse(str(budget)) == budget
    assert hash(Budget.parse(str(budget))) == hash(budget)


@pytest.mark.parametrize("bad", ["", "macs", "macs=", "macs=a", "macs=.1:.2:.3", "macs=1,macs=1"])
def test_bad_text_shows_the_form(bad):
    with pytest.raises(ValueError, match="Expected a budget like"):
        Budget.parse(bad)


def test_text_form_keeps_every_bit_and_orders_the_costs():
    budget = Budget(params=0.4999999, macs=(1 / 3, 0.5000001))
    assert Budget.parse(str(budget)) == budget
    assert str(budget) == str(Budget(macs=(1 / 3, 0.5000001), params=0.4999999))


def test_numbers_of_numpy_are_bounds_too():
    assert Budget(macs=np.float32(0.5)) == Budget(macs=0.5)


def test_a_search_that_hits_its_limit_still_ends_inside_the_budget(monkeypatch):
    graph, decisions = random_graph(5, 10, 64, 1)
    costs = {name: make_cost(name, graph, decisions) for name in ("macs", "params")}
    window = Budget(macs=(0.4, 0.401), params=(0.3, 0.6))
    exact = FeasibleSet(window, costs, decisions)
    assert exact.interval(())
    for limit in (2, 5, 20):
        monkeypatch.setattr("amc_env.budgets.completion.MAX_BOXES", limit)
        exact._completions = dict(list(exact._completions.items())[:1])  # the empty prefix's
        values: list[float] = []
        for _ in decisions:
            values.append(exact.nearest(values, 1.0))
        ratios = {name: exact.ratio(name, np.array(values)) for name in window.bounds}
        assert window.is_met(ratios), limit
