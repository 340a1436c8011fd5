"""Steps without asking the cost models are those that asking them gives, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from amc_env import (
    ArgumentError,
    Budget,
    CompressionEnv,
    CompressionPlan,
    RecordedLearner,
    make_cost,
)
from amc_env.actions import ACTION_MAPPINGS
from amc_env.budgets.balance import Doubt, bisected
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.cost_table import CostTable, LayerTable, measured_layers
from amc_env.costs.costs import COSTS
from amc_env.costs.latency import TableCost
from amc_env.costs.products import CostSums
from amc_env.one_shot import rescale, rescale_all
from amc_env.recorded_tasks.recorded import FOLDER, files
from amc_env.recorded_tasks.synthetic import (
    SyntheticBitsLearner,
    SyntheticDensityLearner,
    SyntheticDepthLearner,
    SyntheticLearner,
)
from tests.support.slow_budgets import SlowEnv, SlowFeasibleSet


def recorded(name):
    return RecordedLearner.load(files("amc_env") / FOLDER / f"{name}.npz")


def latency(learner):
    """Random latencies that rise with widths and bits."""
    rng = np.random.default_rng(0)
    layers = {}
    for layer in measured_layers(learner.graph):
        full = learner.graph.full()
        ends = (round(layer.in_width.at(full)), round(layer.out_width.at(full)))
        widths = [tuple(sorted({max(1, end // 2), end})) for end in ends]
        values = rng.random((len(widths[0]), len(widths[1]))).cumsum(0).cumsum(1)
        values = {"int8": 0.4 * values, "fp32": values}
        shape = {"kernel": layer.kernel, "stride": layer.stride, "input_size": layer.input_size}
        layers[layer.name] = LayerTable(layer.name, layer.kind, *widths, values, **shape)
    table = CostTable("latency", "ms", "none", 1, "none", layers)
    return TableCost(table, learner.graph, learner.decisions, getattr(learner, "storage", None))


def dipping(values):
    v = np.asarray(values, dtype=float)
    return float(np.sum(v + 0.35 * np.abs(np.sin(8 * np.pi * v))))


def rising(values):
    return float(1.0 + np.sum(np.asarray(values, dtype=float) ** 1.5))


def bits(**options):
    return lambda: SyntheticBitsLearner(5, 1, **options)


CASES = {
    "channels": (lambda: SyntheticLearner(9, 2), "macs=0.4", {}),
    "one decision": (lambda: SyntheticLearner(1, 2), "macs=0.6", {}),
    "two costs": (lambda: SyntheticLearner(7, 3), "macs=0.5,params=0.45", {}),
    "window": (lambda: SyntheticLearner(5, 3), "macs=0.45:0.5", {}),
    "windows": (bits(channels=True), "macs=0.5:0.6,bytes=0.05:0.15", {}),
    "bits": (bits(), "mean_bits=4.5/32", {}),
    "bits or float": (bits(bits=(2, 4, 8, 16)), "mean_bits=9/32,bytes=0.3", {}),
    "joint": (bits(channels=True), "macs=0.5,bytes=0.1", {}),
    "joint or float": (bits(channels=True, bits=(3, 8, 16)), "macs=0.6,bops=0.2", {}),
    "all at once": (
        bits(channels=True),
        "macs=0.6,params=0.6,bytes=0.12,bops=0.02,mean_bits=5/32,density=0.6",
        {},
    ),
    "depth": (lambda: SyntheticDepthLearner(4, 1), "macs=0.4", {}),
    "depth and bytes": (lambda: SyntheticDepthLearner(3, 2), "macs=0.4:0.6,bytes=0.7", {}),
    "density": (lambda: SyntheticDensityLearner(5, 1), "density=0.2", {}),
    "density in bytes": (lambda: SyntheticDensityLearner(5, 1), "bytes=0.4,params=0.5", {}),
    "entered": (lambda: SyntheticLearner(5, 1), "own=0.6", {"own": rising}),
    "entered and macs": (lambda: SyntheticLearner(5, 1), "own=0.6,macs=0.5", {"own": rising}),
    "dips": (lambda: SyntheticLearner(4, 3), "own=0.6", {"own": dipping}),
    "dips and macs": (lambda: SyntheticLearner(4, 3), "macs=0.6,own=0.7", {"own": dipping}),
    "latency": (lambda: SyntheticLearner(5, 1), "latency=0.6", {"latency": latency}),
    "latency, macs": (lambda: SyntheticLearner(5, 1), "macs=0.5,latency=0.7", {"latency": latency}),
    "latency of bits": (bits(channels=True), "latency=0.4,bytes=0.2", {"latency": latency}),
    "residual": (lambda: recorded("resnet20-channels"), "macs=0.37", {}),
    "depthwise": (lambda: recorded("mobilenetv2-channels"), "macs=0.5,bytes=0.6", {}),
    "residual and bits": (lambda: recorded("resnet20-joint"), "macs=0.5,bytes=0.1", {}),
}  # fmt: skip


def environments(name):
    make, budget, models = CASES[name]
    learner = make()
    costs = {n: m(learner) if m is latency else m for n, m in models.items()}
    return [kind(learner, budget, cost_models=costs) for kind in (CompressionEnv, SlowEnv)]


def steps(env, actions):
    observation, info = env.reset()
    yield observation.tobytes(), info
    for action in actions:
        observation, reward, *ends, info = env.step(np.array([action], dtype=np.float32))
        executed = info.pop("executed_action").tobytes()
        yield observation.tobytes(), reward, ends, executed, info


@pytest.mark.parametrize("name", CASES)
def test_steps_are_those_of_the_formulas_bit_for_bit(name):
    fast, slow = environments(name)
    rng = np.random.default_rng(3)
    plan = slow.project([rng.choice(d.choices) for d in slow.decisions])
    for budget in (None, *_tight(slow, plan)):
        for env in (fast, slow):
            env.set_budget(budget or env.budget)
        actions = rng.choice([rng.random(), 0.0, 0.5, 1.0], size=len(slow.decisions))
        assert list(steps(fast, actions)) == list(steps(slow, actions))
        assert fast.uniform_plan() == slow.uniform_plan()


@pytest.mark.parametrize("name", [name for name in CASES if "latency" not in name])
def test_many_plans_decoded_at_once_are_those_decoded_one_by_one(name):
    action = (*ACTION_MAPPINGS,)[[*CASES].index(name) % 3]
    make, budget, models = CASES[name]
    learner = make()
    costs = {n: m(learner) if m is latency else m for n, m in models.items()}
    many, one = (CompressionEnv(learner, budget, action=action, cost_models=costs) for _ in "12")
    actions = np.random.default_rng(5).random((5, many.n_decisions))
    actions[0], actions[1] = 0.0, 0.5
    assert many.decode_all(actions) == [one.decode(row) for row in actions]
    assert rescale_all(many, actions) == [rescale(one, row) for row in actions]


def test_rows_that_are_no_actions_are_rejected():
    env, _ = environments("channels")
    assert env.decode_all([]) == []
    for rows in ([[0.5]], [[0.5] * 8 + [1.5]], [[0.5] * 8 + ["a"]], [0.5]):
        with pytest.raises(ArgumentError, match=r"Expected (9 )?actions"):
            env.decode_all(rows)


def _tight(env, plan):
    """A budget that the plan meets with nothing to spare."""
    ratios = {name: env.cost_ratio(plan)[name] for name in env.budget.bounds}
    return [ratios] if all(0.0 < ratio <= 1.0 for ratio in ratios.values()) else []


@pytest.mark.parametrize("name", ["channels", "joint", "density", "residual", "depthwise"])
def test_prefixes_may_be_asked_about_in_any_order(name):
    fast, slow = environments(name)
    rng = np.random.default_rng(4)
    plans = [slow.decode(rng.random(slow.n_decisions)).values_for(slow.decisions) for _ in "123"]
    for _ in range(25):
        prefix = plans[rng.integers(3)][: rng.integers(slow.n_decisions)]
        for question in ("balanced", "interval", "corner_ratios"):
            asked = [getattr(env._feasible, question)(prefix) for env in (fast, slow)]
            assert asked[0] == asked[1]


@pytest.mark.parametrize("name", ["channels", "joint", "density", "bits", "residual and bits"])
def test_the_usual_budgets_ask_no_cost_model_during_an_episode(name, monkeypatch):
    fast, _ = environments(name)
    for name in fast.budget.bounds:
        monkeypatch.setattr(type(fast.costs[name]), "__call__", None)
    info = list(steps(fast, np.full(fast.n_decisions, 0.5)))[-1][-1]
    assert info["cost_ratio"].keys() == fast.costs.keys()


@pytest.mark.parametrize("learner", [bits(channels=True), lambda: SyntheticDensityLearner(5, 1)])
def test_costs_of_many_plans_are_those_of_the_models(learner):
    learner = learner()
    decisions, rng = learner.decisions, np.random.default_rng(0)
    storage = getattr(learner, "storage", None)
    for granularity in ("channel", "tensor"):
        form = storage and replace(storage, granularity=granularity, bytes_per_channel=2.0)
        costs = {name: make_cost(name, learner.graph, decisions, form) for name in COSTS}
        sums = CostSums.build(costs, decisions)
        assert {*sums.names} == {*COSTS} - ({"bytes"} if storage is None else set())
        values = np.array([[rng.choice(d.choices) for d in decisions] for _ in range(200)])
        for name, column in zip(sums.names, sums.at(values).T, strict=True):
            assert column.tolist() == [costs[name](row) for row in values]


def test_a_cost_that_answers_otherwise_than_its_form_is_asked_itself():
    learner = SyntheticLearner(4, 1)
    macs = make_cost("macs", learner.graph, learner.decisions)

    class Dearer(type(macs)):
        def __call__(self, values):
            return super().__call__(values) + 1.0

    costs = {"macs": Dearer(learner.graph, learner.decisions)}
    assert CostSums.build(costs, learner.decisions).names == ()


def test_widths_that_are_no_whole_numbers_have_no_form():
    learner = SyntheticLearner(3, 1)
    decisions = [replace(d, choices=(0.123, 0.777, 1.0)) for d in learner.decisions]
    costs = {"macs": make_cost("macs", learner.graph, decisions)}
    assert CostSums.build(costs, decisions).names == ()
    kinds = (FeasibleSet, SlowFeasibleSet)
    fast, slow = (kind(Budget(macs=0.4), costs, decisions) for kind in kinds)
    assert fast.balanced(()) == slow.balanced(())


def test_bisection_asks_only_where_there_is_doubt():
    asked = []

    def fits(ratio):
        asked.append(ratio)
        return ratio <= 0.3

    least = int(0.3 * 2**30)
    assert bisected(Doubt(least - 4, least + 4), fits) == least / 2**30
    assert 1 <= len(asked) <= 5
    assert bisected(Doubt(0, 2**30), fits) == least / 2**30
    assert len(asked) > 30


def test_plans_off_the_grid_are_asked_about_as_ever():
    fast, slow = environments("channels")
    assert fast._feasible.balanced([0.3333]) == slow._feasible.balanced([0.3333])
    full = CompressionPlan.full(fast.decisions).values_for(fast.decisions)
    assert fast._feasible.corner_ratios(full) == slow._feasible.corner_ratios(full)
