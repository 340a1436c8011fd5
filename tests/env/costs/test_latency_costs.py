"""Costs by measured tables against slow formulas, and their monotonicity whatever was measured."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import RegularGridInterpolator
from support.selection import examples

from amc_env import (
    Budget,
    ChannelGroup,
    Decision,
    DecisionKind,
    LayerGraph,
    LayerSpec,
    Width,
    keep_ratio_decision,
)
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.cost_table import CostTable, CostTableError, LayerTable
from amc_env.costs.latency import TableCost
from amc_env.costs.storage import StorageFormat

WIDTHS = (8, 16, 32)
BITS = (2.0, 4.0, 6.0, 8.0, 16.0)


def chain() -> LayerGraph:
    """Two convolutions and a linear layer: 3 -> a -> b -> 10."""
    a, b = Width(0, (("one", 1),)), Width(0, (("two", 1),))
    return LayerGraph(
        layers=(
            LayerSpec("one", "conv", Width(3), a, (3, 3), (1, 1), 1, 64, True, (8, 8)),
            LayerSpec("two", "conv", a, b, (3, 3), (1, 1), 1, 64, True, (8, 8)),
            LayerSpec("head", "linear", b, Width(10), positions=1, has_bias=True),
        ),
        groups=(
            ChannelGroup("one", 32, ("one",), ("two",)),
            ChannelGroup("two", 32, ("two",), ("head",)),
        ),
    )


def table(values: dict[str, dict[str, np.ndarray]], constant: float = 0.0, **changes) -> CostTable:
    kernel = {"kernel": (3, 3), "stride": (1, 1), "input_size": (8, 8)}
    layers = {
        "one": LayerTable("one", "conv", (3,), WIDTHS, values["one"], **kernel),
        "two": LayerTable("two", "conv", WIDTHS, WIDTHS, values["two"], **kernel),
        "head": LayerTable("head", "linear", WIDTHS, (10,), values["head"]),
    }
    facts = {"quantity": "latency", "unit": "ms", "runtime": "abacus 1", "batch": 1} | changes
    return CostTable(machine="a desk", layers=layers, constant=constant, **facts)


SHAPES = {"one": (1, 3), "two": (3, 3), "head": (3, 1)}


def rising(precisions: dict[str, float], seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """Random values that rise along both widths, times a factor per precision."""
    rng = np.random.default_rng(seed)
    base = {n: rng.random(s).cumsum(0).cumsum(1) for n, s in SHAPES.items()}
    return {n: {p: b * f for p, f in precisions.items()} for n, b in base.items()}


def ratios() -> list[Decision]:
    return [keep_ratio_decision("one", 32, 1), keep_ratio_decision("two", 32, 1)]


def all_decisions() -> list[Decision]:
    return [
        *ratios(),
        *(
            Decision(name, kind, BITS, 10)
            for name in SHAPES
            for kind in (DecisionKind.WEIGHT_BITS, DecisionKind.ACTIVATION_BITS)
        ),
    ]


# ---- values


@given(a=st.integers(8, 32), b=st.integers(8, 32))
def test_interpolates_bilinearly_as_scipy_does(a, b):
    values = rising({"fp32": 1.0})
    cost = TableCost(table(values, constant=0.25), chain(), ratios())
    one = np.interp(a, WIDTHS, values["one"]["fp32"][0])
    two = RegularGridInterpolator((WIDTHS, WIDTHS), values["two"]["fp32"])((a, b)).item()
    head = np.interp(b, WIDTHS, values["head"]["fp32"][:, 0])
    assert cost([a / 32, b / 32]) == pytest.approx(one + two + head + 0.25)


def test_widths_below_the_smallest_measured_one_cost_as_much_as_that():
    cost = TableCost(table(rising({"fp32": 1.0})), chain(), ratios())
    assert cost([1 / 32, 4 / 32]) == cost([8 / 32, 8 / 32])


def test_a_layer_is_int8_only_where_weights_and_inputs_both_are():
    values = rising({"fp32": 3.0, "int8": 1.0})
    cost = TableCost(table(values), chain(), all_decisions())
    corner = {n: v["int8"][-1, -1] for n, v in values.items()}
    for weight, activation in itertools.product(BITS, BITS):
        plan = [1.0, 1.0, weight, activation, 16.0, 16.0, 8.0, 2.0]
        factor = 1.0 if weight <= 8 and activation <= 8 else 3.0
        expected = factor * corner["one"] + 3.0 * corner["two"] + corner["head"]
        assert cost(plan) == pytest.approx(expected), (weight, activation)


def test_other_precisions_are_taken_exactly_or_the_next_higher_one():
    factors = {"w2a8": 1.0, "w4a4": 2.0, "w8a8": 4.0, "fp32": 9.0}
    cost = TableCost(table(rising(factors)), chain(), all_decisions())
    unit = sum(v["w2a8"][-1, -1] for v in rising(factors).values())

    def share(weight, activation):
        return cost([1.0, 1.0, *[weight, activation] * 3]) / unit

    expected = {(2.0, 8.0): 1.0, (4.0, 4.0): 2.0, (8.0, 8.0): 4.0, (16.0, 8.0): 9.0,
                (4.0, 2.0): 2.0, (4.0, 6.0): 4.0, (6.0, 6.0): 4.0, (16.0, 2.0): 9.0}  # fmt: skip
    assert {pair: share(*pair) for pair in expected} == pytest.approx(expected)


def test_bits_without_a_decision_come_from_the_storage_format():
    values = rising({"fp32": 3.0, "int8": 1.0})
    storage = StorageFormat(weight_bits={"one": 8.0}, activation_bits={"one": 8.0, "two": 8.0})
    cost = TableCost(table(values), chain(), ratios(), storage)
    corner = {n: v["int8"][-1, -1] for n, v in values.items()}
    assert cost([1.0, 1.0]) == pytest.approx(corner["one"] + 3 * (corner["two"] + corner["head"]))


def test_the_original_is_the_whole_network_in_the_highest_precision():
    values = rising({"fp32": 3.0, "int8": 1.0})
    storage = StorageFormat({n: 8.0 for n in SHAPES}, {n: 8.0 for n in SHAPES})
    cost = TableCost(table(values, constant=1.0), chain(), ratios(), storage)
    total = sum(v["fp32"][-1, -1] for v in values.values()) + 1.0
    assert cost.original(ratios()) == pytest.approx(total)
    assert cost([1.0, 1.0]) == pytest.approx((total - 1.0) / 3 + 1.0)
    assert table(values, constant=1.0).total("fp32") == pytest.approx(total)


def test_energy_is_a_cost_of_its_own_name():
    cost = TableCost(table(rising({"fp32": 1.0}), quantity="energy", unit="mJ"), chain(), ratios())
    assert cost.name == "energy"


# ---- monotonicity


@examples(60)
@given(seed=st.integers(0, 10**6))
def test_never_falls_when_a_decision_grows_whatever_was_measured(seed):
    rng = np.random.default_rng(seed)
    values = {
        n: {p: rng.random(s) for p in ("w2a2", "w4a8", "int8", "fp32")} for n, s in SHAPES.items()
    }
    decisions = all_decisions()
    cost = TableCost(table(values), chain(), decisions)
    low = np.array([rng.choice(d.choices) for d in decisions])
    for index, decision in enumerate(decisions):
        plans = []
        for choice in decision.choices:
            plan = low.copy()
            plan[index] = choice
            plans.append(cost(plan))
        assert (np.diff(plans) >= -1e-12).all(), decision.key


def slow_envelope(values: np.ndarray, i: int, j: int) -> float:
    """The slowest of all cells with at most these widths."""
    return float(values[: i + 1, : j + 1].max())


@examples(30)
@given(seed=st.integers(0, 10**6))
def test_budgets_see_the_dearest_of_all_narrower_layers_predictions_what_was_measured(seed):
    rng = np.random.default_rng(seed)
    values = {n: {"fp32": rng.random(s)} for n, s in SHAPES.items()}
    steps = [Decision(n, DecisionKind.KEEP_RATIO, (0.25, 0.5, 1.0), 32) for n in ("one", "two")]
    cost = TableCost(table(values), chain(), steps)
    for i, j in itertools.product(range(3), range(3)):
        plan = [WIDTHS[i] / 32, WIDTHS[j] / 32]
        cells = [(values["one"]["fp32"], 0, i), (values["two"]["fp32"], i, j),
                 (values["head"]["fp32"], j, 0)]  # fmt: skip
        assert cost.predict(plan) == pytest.approx(sum(v[x, y] for v, x, y in cells))
        assert cost(plan) == pytest.approx(sum(slow_envelope(v, x, y) for v, x, y in cells))


def test_widths_that_no_plan_has_do_not_raise_the_cost():
    values = rising({"fp32": 1.0})
    values["two"]["fp32"][0, :] = 100.0  # eight inputs are terribly slow
    steps = [Decision(n, DecisionKind.KEEP_RATIO, (0.5, 1.0), 32) for n in ("one", "two")]
    cost = TableCost(table(values), chain(), steps)
    assert cost([0.5, 1.0]) == pytest.approx(cost.predict([0.5, 1.0]))
    fine = [Decision(n, DecisionKind.KEEP_RATIO, (0.25, 0.5, 1.0), 32) for n in ("one", "two")]
    assert TableCost(table(values), chain(), fine)([0.5, 1.0]) > 100.0


def test_precisions_that_no_plan_has_do_not_raise_the_cost():
    values = rising({"fp32": 1.0, "int8": 5.0})  # a runtime whose int8 is slow
    cost = TableCost(table(values), chain(), ratios())
    assert cost([1.0, 1.0]) == pytest.approx(cost.original(ratios()))
    both = all_decisions()
    assert TableCost(table(values), chain(), both)([1.0] * 2 + [16.0] * 6) == pytest.approx(
        5 * cost.original(both)
    )


def test_budgets_on_a_table_are_exact():
    decisions = [keep_ratio_decision("one", 32, 8), keep_ratio_decision("two", 32, 8)]
    cost = TableCost(table(rising({"fp32": 1.0})), chain(), decisions)
    feasible = FeasibleSet(Budget(latency=0.4), {"latency": cost}, decisions)
    fits = [
        a
        for a in decisions[0].choices
        if any(cost([a, b]) <= 0.4 * cost.original(decisions) for b in decisions[1].choices)
    ]
    assert feasible.interval(()) == (fits[0], fits[-1])


# ---- tables for something else


def test_a_table_for_other_layers_names_the_missing_ones():
    other = table(rising({"fp32": 1.0}))
    layers = {n: t for n, t in other.layers.items() if n != "two"}
    short = CostTable("latency", "ms", "abacus 1", 1, "a desk", layers)
    with pytest.raises(CostTableError, match=r"other layers: it lacks two; .*amc latency-table"):
        TableCost(short, chain(), ratios())


def test_a_layer_of_another_shape_is_rejected():
    graph = chain()
    layers = (graph.layers[0], LayerSpec("two", "conv", *[Width(0, (("one", 1),))] * 2, (1, 1),
                                         (1, 1), 1, 64, True, (8, 8)), graph.layers[2])  # fmt: skip
    other = LayerGraph(layers, graph.groups)
    with pytest.raises(CostTableError, match=r"another network: its two is .*\(3, 3\)"):
        TableCost(table(rising({"fp32": 1.0})), other, ratios())


def test_a_wider_network_is_rejected():
    graph = chain()
    groups = tuple(ChannelGroup(g.name, 64, g.producers, g.consumers) for g in graph.groups)
    with pytest.raises(CostTableError, match=r"narrower network: one has 64 outputs, .* 32"):
        TableCost(table(rising({"fp32": 1.0})), LayerGraph(graph.layers, groups), ratios())


def test_an_unfinished_table_is_rejected():
    values = rising({"fp32": 1.0})
    values["two"]["fp32"][1, 1] = np.nan
    with pytest.raises(CostTableError, match=r"not finished: two lacks 1 values; repeat"):
        TableCost(table(values), chain(), ratios())


def test_precisions_that_plans_need_but_no_table_has_are_rejected():
    with pytest.raises(CostTableError, match=r"ends at 8 weight bits, .* 32; measure"):
        TableCost(table(rising({"int8": 1.0})), chain(), all_decisions())


def test_a_precision_that_one_layer_lacks_is_rejected():
    values = rising({"fp32": 1.0, "int8": 0.5})
    del values["head"]["fp32"]
    with pytest.raises(
        CostTableError, match=r"lacks a precision of at least 8-bit weights and 32-bit .* for head"
    ):
        TableCost(table(values), chain(), ratios())


def test_bits_of_unknown_layers_are_rejected():
    with pytest.raises(ValueError, match="three"):
        TableCost(table(rising({"fp32": 1.0})), chain(), ratios(), StorageFormat({"three": 8.0}))
