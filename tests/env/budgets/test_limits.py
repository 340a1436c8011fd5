"""Absolute limits: their units, and the shares of the original that they become."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from support.networks.random_graphs import random_graph

from amc_env.budgets.budget import Budget
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.cost_model import CostModel
from amc_env.costs.costs import make_cost
from amc_env.errors import InfeasibleBudgetError
from amc_env.plan import Decision, DecisionKind


@pytest.mark.parametrize(
    ("text", "same", "cost", "unit", "limit"),
    [
        ("macs<=20M", "macs=20000k", "macs", "", 20e6),
        ("params<=50k", "params<=50000", "params", "", 50_000.0),
        ("bops<=1.5G", "bops<=1500M", "bops", "", 1.5e9),
        ("bytes<=100kB", "bytes=100k", "bytes", "B", 100_000.0),
        ("bytes<=1.5KiB", "bytes<=1536B", "bytes", "B", 1536.0),
        ("latency<=2ms", "latency=2000us", "latency", "ms", 2.0),
        ("latency<=2ms", "latency<=0.002 s", "latency", "us", 2000.0),
        ("energy<=3mJ", "energy=3 mJ", "energy", "mJ", 3.0),
        ("mean_bits<=4", "mean_bits<=4", "mean_bits", "", 4.0),
        ("latency<=0.7", "latency<=0.7", "latency", "ms", 0.7),
    ],
)
def test_units(text, same, cost, unit, limit):
    if text == "latency<=0.7":  # half a millisecond, or half of the latency?
        with pytest.raises(ValueError, match="with its unit"):
            Budget.parse(text)
        return
    budget = Budget.parse(text)
    shares = [
        b.resolved({cost: 8 * limit}, {cost: unit}).bounds for b in (budget, Budget.parse(same))
    ]
    assert shares == [{cost: (0.0, 0.125)}] * 2
    assert Budget.parse(str(budget)) == budget
    assert eval(repr(budget)) == budget
    assert hash(Budget.parse(str(budget))) == hash(budget)


def test_shares_and_limits_mix_and_both_hold():
    budget = Budget.of({"macs": 0.5, "bytes": "50kB:100kB"})
    assert budget == Budget.parse("bytes<=100kB,macs=0.5,bytes>=50kB")
    assert budget.names == ["macs", "bytes"]
    both = Budget.parse("macs=0.5,macs<=20M")
    for original, upper in ((80e6, 0.25), (30e6, 0.5), (10e6, 0.5)):
        assert both.resolved({"macs": original}, {"macs": ""}) == Budget(macs=upper)
    whole = Budget.parse("macs<=20M").resolved({"macs": 1e6}, {"macs": ""})
    assert whole == Budget(macs=1.0)  # the original itself will do


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs<=0.5", "written macs=0.5"),
        ("macs=2", "absolute limit is written"),
        ("bytes<=", "Expected a budget like"),
        ("bytes<100kB", "Expected a budget like"),
        ("bytes<=1:2kB", "Expected a budget like"),
        ("macs<=-3M", "Expected a budget like"),
        ("bytes<=1e999", "Expected a budget like"),
        ("bytes<=3kB,bytes<=4kB", "one limit of bytes"),
    ],
)
def test_other_forms_are_rejected_in_one_sentence(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("macs<=2ms", "limit of macs as 20M"),
        ("bytes<=2ms", "limit of bytes as 100kB"),
        ("energy<=2", "No cost model"),
        ("bytes>=1MB", "the original has 409600B"),
        ("bytes<=10kB,bytes=0.5:0.6", "at least 0.5 and at most 0.0244"),
    ],
)
def test_limits_that_the_costs_cannot_have_are_rejected(text, message):
    with pytest.raises(ValueError, match=message):
        Budget.parse(text).resolved({"macs": 4e7, "bytes": 409600}, {"macs": "", "bytes": "B"})


def test_a_limit_is_exact_against_every_plan_of_the_grid():
    graph, decisions = random_graph(1, 3, 24, 4)
    costs = {name: make_cost(name, graph, decisions) for name in ("macs", "bytes")}
    plans = [np.array(v) for v in itertools.product(*(d.choices for d in decisions))]
    limit = sorted(costs["macs"](plan) for plan in plans)[len(plans) // 3]
    for asked, is_met in ((limit, True), (limit - 1, False)):
        feasible = FeasibleSet(Budget.parse(f"macs<={asked:.0f}"), costs, decisions)
        for plan in plans:
            assert feasible.is_met(list(plan)) is (costs["macs"](plan) <= asked)
        exact = [p for p in plans if costs["macs"](p) == limit]
        assert feasible.is_met(list(exact[0])) is is_met


def test_an_unreachable_limit_names_itself_and_the_shares():
    class Energy(CostModel):
        name, unit = "energy", "mJ"

        def __call__(self, values):
            return 4.0 + float(values[0])

    decision = Decision("a", DecisionKind.KEEP_RATIO, (0.5, 1.0), 2)
    with pytest.raises(InfeasibleBudgetError, match=r"energy='<=4mJ'.*energy=0\.8.*0\.9000 to 1"):
        FeasibleSet(Budget(energy="4mJ"), {"energy": Energy()}, [decision])
    assert FeasibleSet(Budget(energy="4.5mJ"), {"energy": Energy()}, [decision]).is_met([0.5])
