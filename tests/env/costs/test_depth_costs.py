"""Branches that may be left out: what is left costs what a network without them costs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest

from amc_env import (
    Branch,
    Budget,
    ChannelGroup,
    ChannelParameters,
    CompressionEnv,
    CompressionPlan,
    Decision,
    DecisionKind,
    InfeasibleBudgetError,
    LayerGraph,
    LayerSpec,
    StorageFormat,
    Width,
    depth_decision,
    make_cost,
    with_depth,
)
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.cost_table import CostTable, LayerTable, measured_layers
from amc_env.costs.costs import COSTS, costs_for
from amc_env.costs.latency import TableCost
from amc_env.costs.onnx_bytes import OnnxBytesCost, OnnxContents
from amc_env.costs.products import CostSums
from amc_env.observation import features_for
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json
from amc_env.recorded_tasks.synthetic import SyntheticDepthLearner
from amc_env.render import layer_widths, plan_table

A, S, M = Width(0, (("a", 1),)), Width(0, (("stem", 2),)), Width(0, (("m.up", 3),))


def linear(name, inputs, outputs, **more):
    return LayerSpec(name, "linear", inputs, outputs, positions=7, has_bias=True, **more)


# A stem, a block of two halves, of which one has a group of its own, and a plain one.
GRAPH = LayerGraph(
    layers=(
        linear("stem", Width(5), S),
        linear("a", S, A),
        LayerSpec("a.product", "matmul", A, Width(9), positions=4),
        linear("a.out", A, S),
        linear("m.up", S, M),
        linear("m.down", M, S),
        linear("plain", S, S),
        linear("head", S, Width(3)),
    ),
    groups=(
        ChannelGroup("stem", 4, ("stem", "a.out", "m.down", "plain"), ("a", "m.up", "head")),
        ChannelGroup("a", 6, ("a",), ("a.out",)),
        ChannelGroup("m.up", 2, ("m.up",), ("m.down",)),
    ),
    channel_parameters=(
        ChannelParameters("stem.norm", S, 2, 2),
        ChannelParameters("a.norm", S, 2, 2),
        ChannelParameters("m.norm", S, 2),
    ),
    other_parameters=11,
    other_buffer_bytes=24,
    branches=(
        Branch(
            "block", ("a", "a.product", "a.out", "m.up", "m.down"), ("a.norm", "m.norm"),
            ("a", "m.up"), 3, 8,
        ),
        Branch("half", ("m.up", "m.down"), ("m.norm",), ("m.up",), 2),
        Branch("plain", ("plain",), other_buffer_bytes=8),
    ),
)  # fmt: skip
ATTENTION = replace(
    GRAPH,
    branches=(
        *GRAPH.branches,
        Branch("quarter", ("a", "a.product", "a.out"), ("a.norm",), ("a",), 1, 8),
    ),
)
OUTER = ("block:depth", "plain:depth")
RATIOS = tuple(
    Decision(g.name, DecisionKind.KEEP_RATIO, tuple(k / g.size for k in (1, g.size)), g.size)
    for g in GRAPH.groups
)
BITS = (
    Decision("a", DecisionKind.WEIGHT_BITS, (2.0, 8.0), 1),
    Decision("plain", DecisionKind.ACTIVATION_BITS, (4.0, 8.0), 1),
)
DENSITY = tuple(Decision(n, DecisionKind.DENSITY, (0.25, 1.0), 1) for n in ("stem", "m.down"))
FORMATS = {
    "none": None,
    "folded": StorageFormat(
        weight_bits={"stem": 8, "m.up": 4}, folded={"a.norm": "a"}, bytes_per_layer=3.0
    ),
    "tensor": StorageFormat(weight_bits={"m.up": 4, "plain": 2}, granularity="tensor"),
    "group": StorageFormat(weight_bits={"m.up": 4}, granularity="group", bucket_size=2),
    "codebook": StorageFormat(weight_bits={"plain": 3}, codebook=True),
}


def without(graph, out):
    """The network in which some branches were never written."""
    gone = [b for b in graph.branches if b.name in out]
    layers = {name for b in gone for name in b.layers}
    channels = {name for b in gone for name in b.channel_parameters}
    groups = {name for b in gone for name in b.groups}
    inner = [b for b in graph.branches if set(b.layers) <= layers]
    return LayerGraph(
        tuple(x for x in graph.layers if x.name not in layers),
        tuple(g for g in graph.groups if g.name not in groups),
        tuple(x for x in graph.channel_parameters if x.name not in channels),
        graph.other_parameters - sum(b.other_parameters for b in inner),
        graph.other_buffer_bytes - sum(b.other_buffer_bytes for b in inner),
    )


def left(storage, graph):
    names = {x.name for x in (*graph.layers, *graph.channel_parameters)}
    kept = {
        name: {k: v for k, v in getattr(storage, name).items() if k in names}
        for name in ("weight_bits", "folded")
    }
    return replace(storage, **kept)


def plans(decisions):
    return itertools.product(*(d.choices for d in decisions))


@pytest.mark.parametrize("storage", FORMATS)
@pytest.mark.parametrize("more", [RATIOS, RATIOS[:1] + BITS, RATIOS[:1] + DENSITY])
def test_what_is_left_out_costs_nothing_and_the_rest_what_it_costs_alone(more, storage):
    form, decisions = FORMATS[storage], with_depth(GRAPH, more)
    total = sum(x.weights(GRAPH.full()) for x in GRAPH.layers)
    costs = {name: make_cost(name, GRAPH, decisions, form) for name in COSTS}
    alone: dict[frozenset[str], dict] = {}
    for values in plans(decisions):
        out = frozenset(
            d.target
            for d, v in zip(decisions, values, strict=True)
            if d.kind is DecisionKind.DEPTH and not v
        )
        graph = without(GRAPH, out)
        names = {x.name for x in (*graph.layers, *graph.groups)}
        rest = {d: v for d, v in zip(decisions, values, strict=True) if d.target in names}
        rest = {d: v for d, v in rest.items() if d.kind is not DecisionKind.DEPTH}
        share = sum(x.weights(graph.full()) for x in graph.layers) / total
        if out not in alone:
            shown = form and left(form, graph)
            alone[out] = {name: make_cost(name, graph, tuple(rest), shown) for name in COSTS}
        for name, cost in costs.items():
            wanted = alone[out][name](list(rest.values()))
            wanted *= share if name in ("mean_bits", "density") else 1.0
            assert abs(cost(values) - wanted) <= 1e-12 * wanted, (name, values)


def test_tables_and_onnx_files_have_nothing_of_it_either():
    decisions = with_depth(GRAPH, RATIOS[:1])
    layers = {
        x.name: LayerTable(
            x.name, x.kind, (1, 9), (1, 9), {"fp32": np.full((2, 2), 1.0 + i)},
            kernel=x.kernel, stride=x.stride, input_size=x.input_size,
        )
        for i, x in enumerate(measured_layers(GRAPH))
    }  # fmt: skip
    table = TableCost(CostTable("latency", "ms", "none", 1, "none", layers), GRAPH, decisions)
    held = frozenset(x.name for x in GRAPH.layers if x.has_weights)
    vectors = {"plain": 1, "m.norm": 4, "head": 1}
    onnx = OnnxBytesCost(GRAPH, decisions, OnnxContents(10_000, held, vectors))
    whole = CompressionPlan.full(decisions)
    for branch in GRAPH.branches:
        plan = CompressionPlan({**whole, f"{branch.name}:depth": 0.0}).values_for(decisions)
        gone = sum(float(layers[n].values["fp32"][0, 0]) for n in branch.layers if n in layers)
        assert table(plan) == pytest.approx(table.original(decisions) - gone)
        full = GRAPH.full()
        numbers = sum(x.weights(full) for x in GRAPH.layers if x.name in branch.layers)
        numbers += 8 * (vectors["plain"] if branch.name == "plain" else vectors["m.norm"])
        assert onnx(plan) == 10_000 - 4 * numbers


@pytest.mark.parametrize("more", [RATIOS, RATIOS[:1] + BITS, RATIOS[1:] + DENSITY])
def test_all_costs_that_are_sums_of_products_stay_some(more):
    decisions = with_depth(ATTENTION, more)
    for form in (StorageFormat(weight_bits={"stem": 8, "a": 4}, granularity="tensor"), None):
        costs = {n: make_cost(n, ATTENTION, decisions, form) for n in costs_for(decisions)}
        names = set(CostSums.build(costs, decisions).names)
        without_depth = {n: make_cost(n, ATTENTION, more, form) for n in COSTS}
        assert names == {"depth", *CostSums.build(without_depth, more).names}


@pytest.mark.parametrize("bounds", [
    {"macs": 0.5}, {"bytes": (0.3, 0.5)}, {"macs": (0.4, 0.6), "params": 0.6},
    {"depth": 0.5, "macs": (0.2, 0.5)}, {"macs": 0.32},
])  # fmt: skip
def test_the_feasible_values_are_exactly_those_that_can_be_completed(bounds):
    decisions = with_depth(ATTENTION, RATIOS)
    costs = {n: make_cost(n, ATTENTION, decisions) for n in costs_for(decisions)}
    feasible = FeasibleSet(Budget(**bounds), costs, decisions)
    table = np.array(list(plans(decisions)))
    used = ("macs", "params", "bytes", "depth")
    ratios = {
        n: np.array([costs[n](v) for v in table]) / costs[n].original(decisions) for n in used
    }
    met = table[:, [i for i, d in enumerate(decisions) if d.key in OUTER]].any(axis=1)
    for name, bound in bounds.items():
        low, high = bound if isinstance(bound, tuple) else (0.0, bound)
        met &= (low <= ratios[name]) & (ratios[name] <= high)
    assert met.any()
    rng = np.random.default_rng(0)
    for _ in range(30):
        prefix: list[float] = []
        for i, decision in enumerate(decisions):
            able = np.unique(table[met & (table[:, :i] == prefix).all(axis=1), i])
            assert feasible.interval(prefix) == (able[0], able[-1])
            request = rng.random()
            wanted = min(able, key=lambda c: (abs(c - request), -c))
            assert feasible.nearest(prefix, request) == wanted
            prefix.append(float(rng.choice(able)))
            assert decision.is_legal(prefix[-1])


def test_a_budget_that_would_leave_out_every_branch_is_infeasible_by_name():
    decisions = with_depth(GRAPH, ())
    costs = {n: make_cost(n, GRAPH, decisions) for n in costs_for(decisions)}
    usable = [v for v in plans(decisions) if v[0] or v[2]]  # a half of no block is none
    least = min(map(costs["macs"], usable)) / costs["macs"]((1, 1, 1))
    FeasibleSet(Budget(macs=least), costs, decisions)
    message = "No plan meets .*One of the branches has to stay: block, half, plain."
    with pytest.raises(InfeasibleBudgetError, match=message):
        FeasibleSet(Budget(macs=least - 1e-6), costs, decisions)
    with pytest.raises(InfeasibleBudgetError, match=r"every plan has at least 0\.3333 of depth"):
        FeasibleSet(Budget(depth=0.2), costs, decisions)


def test_branches_come_before_what_is_within_them():
    keys = [d.key for d in with_depth(GRAPH, RATIOS)]
    assert keys == [
        "stem:keep_ratio", "block:depth", "a:keep_ratio", "half:depth", "m.up:keep_ratio",
        "plain:depth",
    ]  # fmt: skip


def test_an_episode_observes_what_is_left_out_and_shows_it():
    env = CompressionEnv(SyntheticDepthLearner(4, 1), "macs=0.5", render_mode="rgb_array")
    names = [name for name, _ in features_for(env.decisions)]
    assert names[-2:] == ["is_depth", "depth"]
    observation, _ = env.reset()
    assert dict(zip(names, observation, strict=True))["is_depth"] == 1.0
    observation, _, _, _, info = env.step(np.zeros(1, dtype=np.float32))
    assert (info["value"], observation[-2:].tolist()) == (0.0, [0.0, 0.0])
    seen = dict(zip(names, observation, strict=True))
    assert (seen["interval_high"], seen["undecided"] > 0.5) == (1.0, True)
    values = [0.0, 0.5, 1.0, 0.5]
    widths = {row[0]: row[2] for row in layer_widths(env.graph, env.decisions, values)}
    assert widths["block0.conv1"] == widths["block0.conv2"] == 0 < widths["block1.conv1"]
    lines = plan_table(env.graph, env.decisions, values, env.costs).splitlines()
    assert lines[1].split()[:3] == ["block0", "depth", "out"]
    assert lines[-1].split()[0] == "depth"
    assert lines[-1].endswith("(75.0%)")
    assert env.render().shape[0] == round(6.5 * 80)


ALL = with_depth(GRAPH, (*RATIOS, *BITS, *DENSITY))


class Counting:
    """Knows the graph, and counts what it is asked for."""

    graph, decisions, original_score = GRAPH, ALL, 1.0

    def __init__(self):
        self.asked = []

    def evaluate(self, plan):
        self.asked.append(plan)
        return 0.5


def test_plans_of_one_network_are_one_plan_evaluated_once_and_shown_alike():
    learner, whole = Counting(), CompressionPlan.full(ALL)
    env = CompressionEnv(learner, "macs=1.0")
    out = {"block:depth": 0.0}
    inside = {
        "half:depth": 0.0, "a:keep_ratio": 1 / 6, "m.up:keep_ratio": 0.5, "a:weight_bits": 2.0,
        "m.down:density": 0.25,
    }  # fmt: skip
    one = CompressionPlan({**whole, **out})
    for key, value in inside.items():
        other = CompressionPlan({**one, key: value})
        assert env.canonical(other) == one
        assert env.cost(other) == env.cost(one)
        assert env.evaluate(other).plan == env.project(other.values_for(ALL)) == one
        assert env.canonical(CompressionPlan({**whole, key: value})) != whole
    assert learner.asked == [one]
    for key, value in {"stem:density": 0.25, "plain:activation_bits": 4.0}.items():
        assert env.canonical(CompressionPlan({**one, key: value})) != one
    both = [plan_table(GRAPH, ALL, [{**one, **x}[d.key] for d in ALL]) for x in ({}, inside)]
    assert both[0] == both[1]
    assert ["block", "depth", "out"] in [line.split()[:3] for line in both[0].splitlines()]
    assert sum(line.split()[2] == "-" for line in both[0].splitlines()) == len(inside)


def test_plans_that_a_cost_of_the_users_tells_apart_stay_apart():
    class Widths:
        name, unit = "widths", ""

        def __call__(self, values):
            return float(np.sum(values))

    env = CompressionEnv(Counting(), "macs=1.0", cost_models={"widths": Widths()})
    plan = CompressionPlan({**CompressionPlan.full(ALL), "block:depth": 0.0, "half:depth": 0.0})
    assert env.canonical(plan) == plan


def test_a_task_with_branches_is_stored_and_one_without_as_before():
    learner = SyntheticDepthLearner(3)
    document = json.loads(json.dumps(task_to_json(learner.graph, learner.decisions)))
    assert task_from_json(document)[:2] == (learner.graph, learner.decisions)
    assert "branches" not in task_to_json(replace(learner.graph, branches=()), ())["graph"]


def test_what_is_no_branch_is_rejected():
    with pytest.raises(ValueError, match="no such names"):
        make_cost("macs", replace(GRAPH, branches=()), (depth_decision(GRAPH, "half"),))
    with pytest.raises(KeyError, match="No branch named 'x'"):
        depth_decision(GRAPH, "x")
    with pytest.raises(ValueError, match=r"0 \(left out\) and 1"):
        Decision("half", DecisionKind.DEPTH, (0.0, 0.5, 1.0), 1)
    with pytest.raises(ValueError, match="other parameters"):
        make_cost("params", replace(GRAPH, other_parameters=1), with_depth(GRAPH, ()))
