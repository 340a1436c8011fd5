"""Densities: what they cost by hand and by entropy, what budgets rely on, and their task."""

from __future__ import annotations

import math

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import given
from hypothesis import strategies as st
from support.networks.random_graphs import random_graph
from support.selection import examples

from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.costs.costs import COSTS, BytesCost, make_cost
from amc_env.costs.sparse_form import measured_value_bits
from amc_env.costs.storage import StorageFormat
from amc_env.errors import InfeasibleBudgetError
from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.observation import (
    BIT_FEATURES,
    DENSITY_FEATURES,
    FEATURES,
    ObservationEncoder,
    features_for,
)
from amc_env.plan import Decision, DecisionKind, keep_ratio_decision
from amc_env.recorded_tasks.synthetic import SyntheticDensityLearner
from amc_env.render import plan_table

GRID = tuple((k + 1) / 200 for k in range(200))

# image 3 x 8 x 8 -> a: 8 channels, 3 x 3 -> norm -> b: 6 channels, 1 x 1 -> pooled -> c: 10 classes
A, B = Width(0, (("a", 1),)), Width(0, (("b", 1),))
GRAPH = LayerGraph(
    layers=(
        LayerSpec("a", "conv", Width(3), A, (3, 3), (1, 1), positions=64),
        LayerSpec("b", "conv", A, B, (1, 1), (1, 1), positions=64, has_bias=True),
        LayerSpec("c", "linear", B, Width(10), has_bias=True),
    ),
    groups=(ChannelGroup("a", 8, ("a",), ("b",)), ChannelGroup("b", 6, ("b",), ("c",))),
    channel_parameters=(ChannelParameters("norm", A, 2, 2),),
    other_parameters=5,
)


def density(target, choices=GRID):
    return Decision(target, DecisionKind.DENSITY, choices, 1)


def bits(target, choices):
    return Decision(target, DecisionKind.WEIGHT_BITS, tuple(map(float, choices)), 1)


def cost(name, decisions, values, storage=None):
    return make_cost(name, GRAPH, decisions, storage)(values)


def one_layer(weights):
    """A network of one linear layer, nothing else in it."""
    return LayerGraph((LayerSpec("w", "linear", Width(weights), Width(1)),), ())


def test_density_is_the_share_of_the_original_weights_by_hand():
    decisions = (density("a"), density("b"))
    expected = (216 * 0.25 + 48 * 0.5 + 60) / (216 + 48 + 60)
    assert cost("density", decisions, (0.25, 0.5)) == pytest.approx(expected)
    assert cost("density", decisions, (1, 1)) == 1.0
    fixed = StorageFormat(densities={"c": 0.1})
    expected = (216 * 0.25 + 48 + 60 * 0.1) / 324
    assert cost("density", decisions, (0.25, 1), fixed) == pytest.approx(expected)
    assert make_cost("density", GRAPH, decisions, fixed).original(decisions) == 1.0


def test_cut_channels_take_their_weights_along():
    decisions = (keep_ratio_decision("a", 8, 1), density("a"), density("b"))
    expected = (108 * 0.5 + 24 * 0.25 + 60) / 324
    assert cost("density", decisions, (0.5, 0.5, 0.25)) == pytest.approx(expected)


def test_parameters_that_are_not_zero_count():
    dense = 216 + 48 + 6 + 60 + 10 + 2 * 8 + 5
    assert cost("params", (density("a"),), (0.25,)) == dense - 162
    assert cost("params", (), (), StorageFormat(densities={"a": 0.25})) == dense - 162
    model = make_cost("params", GRAPH, (density("a", (0.1, 0.5)),))
    assert model.original((density("a", (0.1, 0.5)),)) == dense


@pytest.mark.parametrize("name", ["macs", "bops", "mean_bits"])
def test_dense_kernels_multiply_zeros_too(name):
    decisions = (density("a"), density("b"), bits("a", range(2, 9)))
    without = cost(name, decisions[2:], (4,))
    assert cost(name, decisions, (0.02, 0.5, 4)) == without


def entropy(p):
    return -p * math.log2(p) - (1 - p) * math.log2(1 - p)


@pytest.mark.parametrize("share", [0.02, 0.1, 0.3, 0.5, 0.8, 0.95])
def test_bytes_are_the_entropy_of_the_places_and_the_values(share):
    weights = 1_000_000
    for form, of_value in (
        (StorageFormat(value_bits={"w": {32: [(1.0, 32.0)]}}), 32.0),
        (StorageFormat({"w": 5}, granularity="tensor", bytes_per_bucket=0.0), 5.0),
        (StorageFormat({"w": 5}, granularity="tensor", bytes_per_bucket=0.0,
                       value_bits={"w": {5: [(0.0, 3.0), (1.0, 4.0)]}}), 3.0 + share),
    ):  # fmt: skip
        model = make_cost("bytes", one_layer(weights), (density("w"),), form)
        assert isinstance(model, BytesCost)
        least = weights * (entropy(share) + share * of_value) / 8
        assert least < model.predict([share]) < 1.01 * least
        assert model([share]) >= model.predict([share])
        assert model.original((density("w"),)) == 4 * weights


def test_floats_of_sparse_layers_lose_some_of_their_exponent():
    model = make_cost("bytes", one_layer(1_000_000), (density("w"),))
    for share, low, high in ((0.02, 24, 25.5), (0.5, 25.5, 26.5), (1.0, 26.5, 27.5)):
        places = entropy(share) if share < 1 else 0.0
        bits_per_value = (8e-6 * model([share]) - places) / share
        assert low < bits_per_value < high


def test_regular_zeros_are_told_in_fewer_bits():
    form = StorageFormat({"w": 8}, granularity="tensor", bytes_per_bucket=0.0, pattern="2:4")
    model = make_cost("bytes", one_layer(1_000_000), (density("w", (0.5, 1.0)),), form)
    # Each four weights have one of six patterns.
    assert model([0.5]) == pytest.approx(1e6 * (math.log2(6) / 4 + 0.5 * 8) / 8, rel=0.01)
    assert model([1.0]) == pytest.approx(1e6, rel=0.001)


def test_what_was_measured_is_predicted():
    for pattern in ("unstructured", "2:4"):
        for size in (1234.0, 90.0):  # the second: less than the entropy of the places
            found = measured_value_bits(size, 5000, 0.5, pattern)
            form = StorageFormat(value_bits={"w": {32: [(0.5, found)]}}, pattern=pattern)
            model = make_cost("bytes", one_layer(5000), (density("w"),), form)
            assert isinstance(model, BytesCost)
            assert model.predict([0.5]) == pytest.approx(size)


def test_what_was_not_measured_does_not_count_more_than_what_was_for_more_bits():
    form = StorageFormat({"w": 2}, granularity="tensor", value_bits={"w": {4: [(1.0, 0.5)]}})
    model = make_cost("bytes", one_layer(1_000_000), (density("w", (0.5, 1.0)),), form)
    assert isinstance(model, BytesCost)
    assert 8e-6 * model.predict([1.0]) == pytest.approx(0.5, rel=0.01)
    assert 8e-6 * model([1.0]) == pytest.approx(math.log2(1 + 2**0.5), rel=0.01)


def test_few_bits_with_most_weights_take_more_than_all_weights():
    form = StorageFormat({"w": 2}, granularity="tensor", bytes_per_bucket=0.0)
    model = make_cost("bytes", one_layer(1_000_000), (density("w"),), form)
    assert isinstance(model, BytesCost)
    assert model.predict([0.8]) > 1.1 * model.predict([1.0])
    assert model([1.0]) >= model.predict([0.8])
    assert 8e-6 * model([1.0]) == pytest.approx(math.log2(1 + 2**2), rel=0.01)


def test_a_layer_beside_a_sparse_one_is_coded_as_well():
    """The file does so, and what is not decided must not be counted in another form."""
    graph = LayerGraph(
        (
            LayerSpec("v", "linear", Width(100_000), Width(1)),
            LayerSpec("w", "linear", Width(1), Width(100_000)),
        ),
        (),
    )
    alone = make_cost("bytes", one_layer(100_000), (density("w"),))
    assert make_cost("bytes", graph, (density("w"),))([0.1]) == pytest.approx(
        alone([0.1]) + alone([1.0]), rel=0.001
    )
    assert make_cost("bytes", graph, ())(()) == 800_000


@st.composite
def problems(draw):
    graph, widths = random_graph(draw(st.integers(0, 10_000)), draw(st.integers(1, 4)), 8, 1)
    decisions = list(widths)
    points = st.lists(st.tuples(st.floats(0, 1), st.floats(-3, 40)), min_size=1, max_size=3)
    measured = {}
    for layer in graph.layers:
        if draw(st.booleans()):
            grid = draw(st.sampled_from([GRID, (0.5, 1.0), (0.1, 0.3)]))
            decisions.append(density(layer.name, grid))
        if draw(st.booleans()):
            grid = draw(st.sampled_from([(2, 3, 4, 8), (2, 5, 16), (16,)]))
            decisions.append(bits(layer.name, grid))
        if draw(st.booleans()):
            measured[layer.name] = draw(st.dictionaries(st.sampled_from([2, 5, 8, 32]), points))
    storage = StorageFormat(
        densities=draw(st.sampled_from([{}, {graph.layers[0].name: 0.3}])),
        weight_bits=draw(st.sampled_from([{}, {graph.layers[0].name: 8.0}])),
        pattern=draw(st.sampled_from(["unstructured", "2:4"])),
        codebook=draw(st.booleans()),
        value_bits=measured,
    )
    return graph, decisions, draw(st.sampled_from([None, storage]))


@examples(120)
@given(problems(), st.integers(0, 10_000), st.sampled_from(sorted(COSTS)))
def test_no_cost_decreases_when_a_value_grows(problem, seed, name):
    graph, decisions, storage = problem
    model = make_cost(name, graph, decisions, storage)
    rng = np.random.default_rng(seed)
    spans = np.array([(d.choices[0], d.choices[-1]) for d in decisions])
    values = spans[:, 0] + rng.random(len(decisions)) * (spans[:, 1] - spans[:, 0])
    for i in range(len(decisions)):
        larger = values.copy()
        larger[i] += rng.random() * (spans[i, 1] - values[i])
        assert model(larger) >= model(values) * (1 - 1e-12)
        if isinstance(model, BytesCost):
            assert model(values) >= model.predict(values) * (1 - 1e-12)


def test_names_and_numbers_that_cannot_be_are_rejected():
    with pytest.raises(ValueError, match=r"density of \['x'\].*no such names"):
        make_cost("density", GRAPH, (density("x"),))
    with pytest.raises(ValueError, match="densities above 0 and up to 1 for a:density"):
        make_cost("params", GRAPH, (density("a", (0.0, 1.0)),))
    for bad in (
        {"densities": {"a": 0.0}},
        {"densities": {"a": 1.5}},
        {"pattern": "4:2"},
        {"pattern": "2:16"},
        {"pattern": "blocks"},
        {"value_bits": {"a": {32: []}}},
        {"value_bits": {"a": {32: [(2.0, 1.0)]}}},
        {"value_bits": {"a": {32: [(0.5, math.nan)]}}},
    ):
        with pytest.raises(ValueError, match="Expected"):
            StorageFormat(**bad)


# ---------------------------------------------------------------------- the task


def test_gymnasiums_checker_has_nothing_to_say():
    check_env(gym.make("amc_env:amc/synthetic-density-v0", n_layers=4).unwrapped)


@pytest.mark.parametrize("budget", ["density=1/10", "density=0.2:0.25", "bytes=0.2", "params=0.3"])
def test_every_episode_keeps_its_budget(budget):
    env = gym.make("amc_env:amc/synthetic-density-v0", n_layers=5, budget=budget).unwrapped
    rng = np.random.default_rng(0)
    for _ in range(5):
        observation, _ = env.reset()
        terminated = False
        while not terminated:
            assert observation.shape == (len(FEATURES),)
            assert observation[[1, 2, 3, 4]].tolist() == [0, 1, 0, 0]
            action = rng.random(1).astype(np.float32)
            observation, reward, terminated, _, info = env.step(action)
        assert Budget.parse(budget).is_met(info["cost_ratio"])
        assert info["cost_ratio"]["macs"] == 1.0
        assert reward == env.learner.evaluate(CompressionPlan(info["plan"]))


def test_the_uniform_plan_spends_the_budget():
    env = gym.make("amc_env:amc/synthetic-density-v0", budget="density=0.3").unwrapped
    ratio = env.cost_ratio(env.uniform_plan())["density"]
    assert 0.29 < ratio <= 0.3


def test_a_density_that_cannot_be_is_rejected_with_the_range():
    with pytest.raises(InfeasibleBudgetError, match=r"reachable on this grid: density 0\.02"):
        gym.make("amc_env:amc/synthetic-density-v0", budget="density=0.001")
    with pytest.raises(InfeasibleBudgetError, match="No decision changes macs"):
        gym.make("amc_env:amc/synthetic-density-v0", budget="macs=0.5")


def test_losses_add_up_to_the_accuracy():
    learner = SyntheticDensityLearner(4, 3, step=0.1)
    errors = learner.layer_errors()
    rng = np.random.default_rng(0)
    picks = [int(rng.integers(len(d.choices))) for d in learner.decisions]
    values = [d.choices[i] for d, i in zip(learner.decisions, picks, strict=True)]
    plan = CompressionPlan.from_values(learner.decisions, values)
    total = sum(errors[d.key][i] for d, i in zip(learner.decisions, picks, strict=True))
    assert learner.evaluate(plan) == pytest.approx(0.92 * math.exp(-total))
    assert learner.evaluate(CompressionPlan.full(learner.decisions)) == 0.92
    with pytest.raises(ValueError, match="step above 0"):
        SyntheticDensityLearner(step=0.0)


def test_tables_show_the_weights_that_stay():
    learner = SyntheticDensityLearner(2, 0)
    table = plan_table(learner.graph, learner.decisions, [0.1])
    size = learner.decisions[0].size
    assert f"0.100  {round(0.1 * size):>4}/{size}" in table
    assert table.splitlines()[-1].startswith("density")


def test_densities_beside_other_kinds_are_observed_as_such():
    decisions = (density("a"), bits("a", (2, 4, 8)), density("b"))
    names = [name for name, _ in features_for(decisions)]
    assert names == [name for name, _ in (*FEATURES, *BIT_FEATURES, *DENSITY_FEATURES)]
    env = CompressionEnv(_Decider(decisions), "density=0.6")
    encoder = ObservationEncoder(GRAPH, decisions, env.budget, env._feasible)
    row = encoder.encode([0.25], (2.0, 8.0), 0.5)
    assert row[names.index("density")] == 0.25
    row = encoder.encode([0.25, 4.0], (0.1, 1.0), 0.5)
    assert row[names.index("density")] == 1.0
    assert row[names.index("previous_alike")] == 0.25
    # Of the layer itself, though a channel group has its name.
    assert row[names.index("params_share")] == pytest.approx(48 / 324)


class _Decider:
    graph = GRAPH
    original_score = 0.9

    def __init__(self, decisions):
        self.decisions = decisions

    def evaluate(self, plan):
        return 0.5
