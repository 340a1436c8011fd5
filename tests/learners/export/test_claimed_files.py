"""Files have the bytes that are claimed; budgets and tables know of fixed costs."""

from __future__ import annotations

import struct

import pytest
import safetensors.torch
import torch
from safetensors import safe_open

from amc_compress.learners import ChannelPruning
from amc_compress.learners.latency.networks import (
    cut,
    marked_layer,
    prepare,
    to_onnx,
)
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.packing.sharing import shared_names
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import load_weights
from amc_compress.runs.networks import save_network
from amc_env import Budget, CompressionEnv, InfeasibleBudgetError, keep_ratio_decision, make_cost
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.cost_table import measured_layers
from tests.support.networks.counted_networks import CLASSES, STEPS, build


def payload(path):
    data = path.read_bytes()
    return len(data) - 8 - struct.unpack("<Q", data[:8])[0]


def equal(first, second):
    states = first.state_dict(), second.state_dict()
    assert states[0].keys() == states[1].keys()
    return all(torch.equal(states[0][name], states[1][name]) for name in states[0])


@pytest.mark.parametrize("name", ["shared", "buffers", "lstm"])
def test_files_of_whole_and_cut_networks_have_the_claimed_bytes(name, tmp_path):
    net, example = build(name)
    traced = trace(net, example)
    decisions = [keep_ratio_decision(g.name, g.size, 1) for g in traced.graph.groups]
    cost = make_cost("bytes", traced.graph, decisions)
    for ratio in (1.0, 0.5):
        values = [d.nearest(ratio) for d in decisions]
        kept = {d.target: torch.arange(d.units(v)) for d, v in zip(decisions, values, strict=True)}
        small = traced.slice(kept).eval()
        path = tmp_path / f"{ratio}.safetensors"
        save_network(small, path, kept=kept)
        assert payload(path) == cost(values)
        other = traced.slice(kept)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        load_weights(other, path)
        assert equal(other, small)
        assert shared_names(other) == shared_names(small)


def test_packed_files_hold_shared_tensors_once(tmp_path):
    net, example = build("shared")
    path = tmp_path / "net.amcpack"
    save_packed(net, path, example_input=example)
    numbers = sum(p.numel() for p in net.parameters())
    assert 4 * numbers < path.stat().st_size < 4 * numbers + 1500  # the header
    net.second.weight = torch.nn.Parameter(net.second.weight.clone())
    untied = tmp_path / "untied.amcpack"
    save_packed(net, untied, example_input=example)
    more = untied.stat().st_size - path.stat().st_size
    assert abs(more - 4 * net.second.weight.numel()) < 64  # a line of the compressed header
    original, _ = build("shared")
    assert equal(load_packed(path, original), original)


def test_weights_saved_under_any_of_the_names_are_taken(tmp_path):
    net, _ = build("shared")
    for missing in ("first.weight", "second.weight"):
        state = {k: v.clone() for k, v in net.state_dict().items() if k != missing}
        safetensors.torch.save_file(state, tmp_path / "w.safetensors")
        other, _ = build("shared")
        with torch.no_grad():
            other.first.weight.zero_()
        load_weights(other, tmp_path / "w.safetensors")
        assert equal(other, net)
    save_network(net, tmp_path / "n.safetensors")
    with safe_open(tmp_path / "n.safetensors", framework="pt") as file:
        assert set(net.state_dict()) - set(file.keys()) == {"second.weight", "fourth.bias"}


@pytest.mark.parametrize("name", ["lstm", "gru", "lstm_both_ways"])
def test_a_recurrent_kernel_is_measured_as_the_matrix_of_its_inputs(name):
    net, example = build(name)
    traced = prepare(net, example)
    measured = [layer.name for layer in measured_layers(traced.graph)]
    layers = 1 if name == "lstm" else 2
    assert [x for x in measured if x.startswith("recurrent")] == [
        f"recurrent.weight_ih_l{number}" for number in range(layers)
    ]
    kept = {"recurrent.weight_ih_l0": 3}
    for cuts in ({}, kept):
        model = to_onnx(cut(traced, cuts), traced.graph, example)
        nodes = [node for node in model.graph.node if node.op_type in ("LSTM", "GRU")]
        assert [measured[marked_layer(node.name)] for node in nodes] == measured[2 : 2 + layers]


def test_an_unreachable_budget_names_what_no_decision_changes():
    net, example = build("products")
    images = torch.randn(8, 3, STEPS)
    batches = [(images, torch.arange(8) % CLASSES)]
    learner = ChannelPruning(net, example, batches, batches, round_to=1, precision="fp32")
    with pytest.raises(InfeasibleBudgetError, match=r"both\._trilinear \(\d\d\.\d%\)"):
        CompressionEnv(learner, budget=Budget(macs=0.1))
    with pytest.raises(InfeasibleBudgetError) as caught:
        CompressionEnv(learner, budget=Budget(bytes=0.1))
    assert "trilinear" not in str(caught.value)
    costs = {"macs": make_cost("macs", learner.graph, learner.decisions)}
    with pytest.raises(InfeasibleBudgetError, match=r"both\._trilinear"):
        FeasibleSet(Budget(macs=0.01), costs, learner.decisions, learner.graph)
