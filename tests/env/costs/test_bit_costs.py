"""Costs of quantized networks against sums written out by hand, and what budgets rely on."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.networks.random_graphs import random_graph
from support.selection import examples

from amc_env.costs.costs import COSTS, FloatBytesCost, make_cost, original_cost
from amc_env.costs.storage import StorageFormat
from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.plan import Decision, DecisionKind, keep_ratio_decision

BITS = tuple(float(b) for b in range(2, 9))
KINDS = {"w": DecisionKind.WEIGHT_BITS, "a": DecisionKind.ACTIVATION_BITS}

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
    other_buffer_bytes=8 + 3,
)
FLOAT_BYTES = 4 * (216 + 48 + 6 + 60 + 10 + 4 * 8 + 5) + 11


def bits(target, kind, choices=BITS):
    return Decision(target, KINDS[kind], choices, 1)


def keep(target, size):
    return keep_ratio_decision(target, size, 1)


def cost(name, decisions, values, storage=None):
    return make_cost(name, GRAPH, decisions, storage)(values)


def test_bits_times_weights_and_one_scale_per_channel():
    decisions = (bits("a", "w"), bits("b", "w"), bits("b", "a"))
    expected = 216 * 3 / 8 + 8 * 4 + 48 * 5 / 8 + 6 * 4 + 4 * (6 + 60 + 10 + 32 + 5) + 11
    assert cost("bytes", decisions, (3, 5, 2)) == expected


def test_folding_a_norm_removes_its_numbers_and_its_counter_and_adds_a_bias():
    storage = StorageFormat(folded={"norm": "a"})
    assert cost("bytes", (), (), storage) == FLOAT_BYTES - 4 * 4 * 8 - 8 + 4 * 8
    assert cost("params", (), (), storage) == cost("params", (), ()) - 2 * 8 + 8
    for name in ("bytes", "params"):
        assert make_cost(name, GRAPH, (), storage).original(()) == cost(name, (), ())


def test_a_layer_that_has_a_bias_gets_no_second_one():
    storage = StorageFormat(folded={"norm": "b"})
    assert cost("bytes", (), (), storage) == FLOAT_BYTES - 4 * 4 * 8 - 8


@pytest.mark.parametrize(
    ("storage", "beside_codes"),
    [
        (StorageFormat({"a": 4}, granularity="tensor", bytes_per_bucket=8.0), 8),
        (StorageFormat({"a": 4}, granularity="channel", bytes_per_bucket=8.0), 8 * 8),
        (StorageFormat({"a": 4}, granularity="split", bucket_size=100), 3 * 4),
        (StorageFormat({"a": 4}, granularity="split", bucket_size=108), 2 * 4),
        (StorageFormat({"a": 4}, granularity="group", bucket_size=10), 8 * 3 * 4),
        (StorageFormat({"a": 4}, granularity="tensor", codebook=True), 4 + 16 * 4),
        (StorageFormat({"a": 4}, codebook=True, bytes_per_bucket=0.0), 8 * 16 * 4),
        (StorageFormat({"a": 4}, bytes_per_layer=7.0, fixed_bytes=100.0), 8 * 4 + 7 + 100),
    ],
)
def test_fixed_bits_and_what_is_stored_beside_the_codes(storage, beside_codes):
    without_a = FLOAT_BYTES - 4 * 216
    assert cost("bytes", (), (), storage) == without_a + 216 * 4 / 8 + beside_codes


def test_a_decision_has_precedence_over_the_storage():
    storage = StorageFormat({"a": 4}, {"a": 4})
    for name in ("bytes", "bops", "mean_bits"):
        decided = cost(name, (bits("a", "w"), bits("a", "a")), (3, 3), storage)
        assert decided == cost(name, (), (), StorageFormat({"a": 3}, {"a": 3}))


def test_bit_operations_are_macs_times_both_bits():
    decisions = (bits("a", "w"), bits("b", "a"), bits("b", "w"))
    macs = (64 * 216, 64 * 48, 60)
    expected = macs[0] * 3 * 32 + macs[1] * 4 * 2 + macs[2] * 8 * 32
    assert cost("bops", decisions, (3, 2, 4), StorageFormat({"c": 8})) == expected
    assert make_cost("bops", GRAPH, decisions).original(decisions) == sum(macs) * 1024


def test_products_of_activations_stay_float():
    product = LayerSpec("p", "matmul", Width(4), Width(4), positions=10)
    graph = dataclasses.replace(GRAPH, layers=(product,))
    assert make_cost("bops", graph, ())(()) == 160 * 1024


def test_mean_bits_weigh_by_the_original_weights_even_when_channels_are_cut():
    decisions = (keep("a", 8), bits("a", "w"), bits("b", "w"))
    storage = StorageFormat({"c": 8})
    expected = (216 * 2 + 48 * 5 + 60 * 8) / (216 + 48 + 60)
    for ratio in (0.5, 1.0):
        assert cost("mean_bits", decisions, (ratio, 2, 5), storage) == pytest.approx(expected)
    assert make_cost("mean_bits", GRAPH, decisions, storage).original(decisions) == 32.0


def test_four_bits_everywhere_are_exactly_four_of_thirty_two():
    decisions = tuple(bits(name, kind) for name in "abc" for kind in "wa")
    model = make_cost("mean_bits", GRAPH, decisions)
    assert model([4.0] * 6) / model.original(decisions) == 4 / 32
    model = make_cost("bops", GRAPH, decisions)
    assert model([4.0] * 6) / model.original(decisions) == 1 / 64


def test_widths_and_bits_multiply():
    decisions = (keep("a", 8), bits("a", "w"), bits("a", "a"), bits("b", "w"), bits("b", "a"))
    values = (0.5, 4, 8, 2, 6)
    assert cost("macs", decisions, values) == 64 * (108 + 24) + 60
    assert cost("bops", decisions, values) == 64 * (108 * 32 + 24 * 12) + 60 * 1024
    stored = 108 * 4 / 8 + 4 * 4 + 24 * 2 / 8 + 6 * 4
    assert cost("bytes", decisions, values) == stored + 4 * (6 + 60 + 10 + 16 + 5) + 11


def test_sixteen_is_float32():
    decisions = (bits("a", "w", (*BITS, 16.0)), bits("a", "a", (*BITS, 16.0)))
    for name in ("bytes", "bops", "mean_bits"):
        model = make_cost(name, GRAPH, decisions)
        assert model((16, 16)) == model.original(decisions)
        only_off = (bits("a", "w", (16.0,)), bits("a", "a", (16.0,)))
        assert make_cost(name, GRAPH, only_off)((16, 16)) == model.original(decisions)
    for off in (16, 32):
        assert cost("mean_bits", (), (), StorageFormat({"a": off})) == 32.0


def test_halfway_between_eight_and_off_is_half_the_way():
    decisions = (bits("a", "w", (*BITS, 16.0)),)
    for name in ("bytes", "bops", "mean_bits"):
        model = make_cost(name, GRAPH, decisions)
        assert model((12,)) == pytest.approx((model((8,)) + model((16,))) / 2)


def test_off_never_counts_less_than_the_largest_codebook():
    storage = StorageFormat(codebook=True)
    model = make_cost("bytes", GRAPH, (bits("a", "w", (*BITS, 16.0)),), storage)
    assert 216 + 8 * 256 * 4 > 216 * 4
    assert model((16,)) == model((8,)) > model((7,))


def test_without_bits_and_storage_bytes_are_what_they_were():
    graph, decisions = random_graph(7, 4, 64, 1)
    rng = np.random.default_rng(0)
    for _ in range(20):
        values = [rng.choice(d.choices) for d in decisions]
        before = FloatBytesCost(graph, decisions)(values)
        assert make_cost("bytes", graph, decisions)(values) == before
    full = [d.choices[-1] for d in decisions]
    for name in ("macs", "params", "bytes"):
        model = make_cost(name, graph, decisions)
        assert model.original(decisions) == original_cost(model, decisions) == model(full)


@st.composite
def joint_problems(draw):
    graph, widths = random_graph(draw(st.integers(0, 10_000)), draw(st.integers(1, 4)), 8, 1)
    grid = draw(st.sampled_from([BITS, (*BITS, 16.0), (3.0, 16.0), (16.0,)]))
    decisions = list(widths)
    for layer in graph.layers:
        decisions += [
            bits(layer.name, kind, grid) for kind in draw(st.sampled_from(["wa", "w", ""]))
        ]
    storage = draw(
        st.builds(
            StorageFormat,
            granularity=st.sampled_from(["tensor", "channel", "split", "group"]),
            bucket_size=st.integers(1, 40),
            bytes_per_bucket=st.sampled_from([0.0, 4.0, 8.0]),
            codebook=st.booleans(),
            weight_bits=st.sampled_from([{}, {graph.layers[0].name: 8.0}]),
            folded=st.sampled_from([{}, {"norm": graph.layers[-1].name}]),
        )
    )
    return graph, decisions, draw(st.sampled_from([None, storage]))


@examples(150)
@given(joint_problems(), st.integers(0, 10_000), st.sampled_from(sorted(COSTS)))
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


def test_names_that_the_network_does_not_have_are_rejected():
    with pytest.raises(ValueError, match=r"weight_bits of \['x'\].*no such names; it has \['a'"):
        make_cost("bytes", GRAPH, (bits("x", "w"),))
    with pytest.raises(ValueError, match=r"activation_bits of \['y'\]"):
        make_cost("bops", GRAPH, (), StorageFormat(activation_bits={"y": 4}))
    with pytest.raises(ValueError, match=r"folded norms of \['z'\]"):
        make_cost("bytes", GRAPH, (), StorageFormat(folded={"z": "a"}))
    with pytest.raises(ValueError, match=r"layers of folded norms of \['q'\]"):
        make_cost("params", GRAPH, (), StorageFormat(folded={"norm": "q"}))


@pytest.mark.parametrize("grid", [(0.0, 8.0), (8.0, 32.0)])
def test_bits_off_the_scale_are_rejected(grid):
    with pytest.raises(ValueError, match=r"bits from 1 to 16 .* for a:weight_bits"):
        make_cost("mean_bits", GRAPH, (bits("a", "w", grid),))


@pytest.mark.parametrize(
    "bad",
    [
        {"granularity": "row"},
        {"bucket_size": 0},
        {"bytes_per_bucket": -1.0},
        {"fixed_bytes": float("nan")},
        {"weight_bits": {"a": 0}},
        {"activation_bits": {"a": float("nan")}},
    ],
)
def test_a_storage_that_cannot_be_is_rejected(bad):
    with pytest.raises(ValueError, match=r"Expected|Unknown"):
        StorageFormat(**bad)
