"""What costs are made from: no number that would let a cost fall, or be none, gets in."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selection import examples

from amc_env.costs.cost_table import CostTable, LayerTable
from amc_env.costs.costs import MacsCost
from amc_env.costs.latency import TableCost
from amc_env.costs.onnx_bytes import OnnxBytesCost, OnnxContents
from amc_env.costs.size_costs import BytesCost, ParamsCost
from amc_env.costs.storage import StorageFormat
from amc_env.graph import ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.kinds import DecisionKind
from amc_env.plan import Decision, keep_ratio_decision

SHARES = (0.05, 0.25, 0.5, 0.75, 1.0)
DECISIONS = (
    keep_ratio_decision("a", 8, 1),
    *(Decision(name, DecisionKind.DENSITY, SHARES, 100) for name in "ab"),
)
LAYERS = (
    LayerSpec("a", "conv", Width(3), Width(0, (("a", 1),)), (3, 3), (1, 1), 1, 16, True, (4, 4)),
    LayerSpec("b", "linear", Width(0, (("a", 4),)), Width(5), has_bias=True),
)
GRAPH = LayerGraph(
    LAYERS, (ChannelGroup("a", 8, ("a",), ("b",)),),
    (ChannelParameters("norm", Width(0, (("a", 1),)), 2, 2),), 5, 8,
)  # fmt: skip
FORM = StorageFormat({"a": 4, "b": 4}, value_bits={"a": {4: [(0.5, 3.0)]}})
CONTENTS = OnnxContents(9_000, frozenset("ab"), {"a": 1, "norm": 4}, 3)
ONE, TWO = (3,), (1, 8)
TABLE = {
    "a": LayerTable(
        "a", "conv", ONE, TWO, {"fp32": np.array([[1.0, 4.0]])}, (3, 3), (1, 1), False, (4, 4)
    ),
    "b": LayerTable("b", "linear", (4, 32), (5,), {"fp32": np.array([[1.0], [2.0]])}),
}


def in_layer(**more: Any) -> BytesCost:
    return BytesCost(replace(GRAPH, layers=(replace(LAYERS[0], **more), LAYERS[1])), DECISIONS)


def in_group(**more: Any) -> MacsCost:
    return MacsCost(replace(GRAPH, groups=(replace(GRAPH.groups[0], **more),)), DECISIONS)


def in_norm(**more: Any) -> ParamsCost:
    norm = replace(GRAPH.channel_parameters[0], **more)
    return ParamsCost(replace(GRAPH, channel_parameters=(norm,)), DECISIONS)


def in_form(**more: Any) -> BytesCost:
    return BytesCost(GRAPH, DECISIONS, replace(FORM, **more))


def in_file(**more: Any) -> OnnxBytesCost:
    return OnnxBytesCost(GRAPH, DECISIONS, replace(CONTENTS, **more))


def in_table(number: Any = 4.0, **more: Any) -> TableCost:
    first = replace(TABLE["a"], values={"fp32": np.array([[1.0, number]])})
    facts = {"batch": 1, "constant": 0.5} | more
    table = CostTable("latency", "ms", "none", machine="none", layers=TABLE | {"a": first}, **facts)
    return TableCost(table, GRAPH, DECISIONS)


PLACES: dict[str, Callable[[Any], Any]] = {
    "positions": lambda x: in_layer(positions=x),
    "kernel": lambda x: in_layer(kernel=(3, x)),
    "conv_groups": lambda x: in_layer(conv_groups=x),
    "width": lambda x: in_layer(in_width=Width(x)),
    "multiplier": lambda x: in_layer(out_width=Width(0, (("a", x),))),
    "size": lambda x: in_group(size=x),
    "least": lambda x: in_group(least=x),
    "n_parameters": lambda x: in_norm(n_parameters=x),
    "n_buffers": lambda x: in_norm(n_buffers=x),
    "bucket_size": lambda x: in_form(granularity="group", bucket_size=x),
    "bytes_per_bucket": lambda x: in_form(bytes_per_bucket=x),
    "bytes_per_channel": lambda x: in_form(bytes_per_channel=x),
    "bytes_per_layer": lambda x: in_form(bytes_per_layer=x),
    "fixed_bytes": lambda x: in_form(fixed_bytes=x),
    "weight_bits": lambda x: in_form(weight_bits={"a": x, "b": 4}),
    "densities": lambda x: in_form(densities={"b": x}),
    "value_bits": lambda x: in_form(value_bits={"a": {4: [(0.5, x)]}}),
    "density of value_bits": lambda x: in_form(value_bits={"a": {4: [(x, 3.0)]}}),
    "file_bytes": lambda x: in_file(file_bytes=x),
    "unseen_bytes": lambda x: in_file(unseen_bytes=x),
    "vectors": lambda x: in_file(vectors={"a": x}),
    "measured value": in_table,
    "constant": lambda x: in_table(constant=x),
    "batch": lambda x: in_table(batch=x),
}
ODD = (-math.inf, -1000, -3, -1, -0.5, 0, 0.5, 1, 2, 3, 7.5, 64, math.inf, math.nan)


def grows(model: Any) -> bool:
    """Whether a cost is a number everywhere, and never falls as one value grows."""
    steps = [list(decision.choices) for decision in DECISIONS]
    for place, choices in enumerate(steps):
        for others in (0, -1):
            plans = [[c[others] for c in steps] for _ in choices]
            for plan, value in zip(plans, choices, strict=True):
                plan[place] = value
            costs = [float(model(plan)) for plan in plans]
            if not all(0.0 <= x < math.inf for x in costs):
                return False
            if any(b < a - 1e-6 * abs(a) for a, b in itertools.pairwise(costs)):
                return False
    return True


@examples(300)
@given(st.sampled_from(sorted(PLACES)), st.sampled_from(ODD))
def test_a_cost_is_rejected_in_a_sentence_or_grows(place: str, number: float) -> None:
    try:
        model = PLACES[place](number)
    except (ValueError, TypeError) as error:
        message = str(error)
        assert message.lower().startswith(("expected", "the cost table is not finished")), message
        assert message.rstrip().endswith(".")
        assert "\n" not in message
        return
    assert grows(model), (place, number)


@pytest.mark.parametrize("bits", [-3.0, -100.0])
def test_values_that_take_less_than_nothing_are_rejected(bits: float) -> None:
    with pytest.raises(ValueError, match=r"value_bits of 'a' that are at least 0 .* measure"):
        in_form(value_bits={"a": {4: [(0.5, bits)]}})
    # An order among the places may be worth more than the values take.
    assert grows(in_form(value_bits={"a": {4: [(0.5, -1.5)]}}))


def test_all_numbers_as_they_are_make_costs() -> None:
    assert all(grows(model) for model in (in_layer(), in_group(), in_norm(), in_form(), in_file()))
