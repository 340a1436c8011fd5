"""What a graph claims of a network, whole and cut, is what is counted there by others."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.selection import quick
from torch import nn

from amc_compress.learners import ChannelPruning
from amc_compress.learners.tracing.claims import Claims
from amc_compress.learners.tracing.labels.counting import count_bytes, count_macs, count_parameters
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import trace
from amc_env import Budget, CompressionEnv, keep_ratio_decision, make_cost
from amc_env.budgets.feasible import FeasibleSet
from amc_env.graph import ChannelGroup, LayerGraph, LayerSpec, Width
from tests.support.costs import counted_macs
from tests.support.networks.counted_networks import CLASSES, NETWORKS, STEPS, Recurrent, build

COSTS = ("macs", "params", "bytes")


def decisions_of(graph):
    return [keep_ratio_decision(group.name, group.size, 1) for group in graph.groups]


def claimed(graph, values):
    return {name: make_cost(name, graph, decisions_of(graph))(values) for name in COSTS}


def counted(network, example):
    parameters = sum(parameter.numel() for parameter in network.parameters())
    stored = network.state_dict().keys() & dict(network.named_buffers()).keys()
    buffers = [network.get_buffer(name) for name in stored]
    return {
        "macs": counted_macs(network, example),
        "params": parameters,
        "bytes": 4 * parameters + sum(b.numel() * b.element_size() for b in buffers),
    }


@pytest.mark.parametrize("name", quick(NETWORKS, *list(NETWORKS)[::2]))
def test_claims_of_the_network_and_of_its_cuts_are_the_counts(name):
    net, example = build(name)
    traced = trace(net, example)
    sizes = {group.name: group.size for group in traced.graph.groups}
    generator = torch.Generator().manual_seed(5)
    cuts = [{}, *(random_cut(sizes, generator, share) for share in (0.0, None, None))]
    for cut in cuts:
        values = [len(cut.get(n, range(size))) / size for n, size in sizes.items()]
        found = counted(traced.slice(cut), example)
        assert claimed(traced.graph, values) == pytest.approx(found, rel=1e-4)
    assert sizes  # something can be cut in all of them


@pytest.mark.parametrize("name", ["lstm", "gru", "grouped_2", "transposed", "shared"])
def test_a_budget_on_multiply_adds_is_met_by_the_count(name):
    net, example = build(name)
    traced = trace(net, example)
    decisions = decisions_of(traced.graph)
    cost = make_cost("macs", traced.graph, decisions)
    smallest = cost([d.choices[0] for d in decisions]) / cost.original(decisions)
    upper = (1 + smallest) / 2
    feasible = FeasibleSet(Budget(macs=upper), {"macs": cost}, decisions)
    values = []
    for decision in decisions:  # as much as the budget leaves, group after group
        values.append(max(v for v in decision.choices if v <= feasible.interval(values)[1]))
    kept = {d.target: torch.arange(d.units(v)) for d, v in zip(decisions, values, strict=True)}
    ratio = counted_macs(traced.slice(kept), example) / counted_macs(net, example)
    assert smallest <= ratio <= upper


def test_a_pruned_network_with_a_recurrent_layer_meets_its_budget_by_hand():
    torch.manual_seed(0)
    net, images = Recurrent(nn.LSTM).eval(), torch.randn(16, 3, STEPS)
    batches = [(images, torch.arange(16) % CLASSES)]
    learner = ChannelPruning(net, images[:1], batches, batches, round_to=1)
    env = CompressionEnv(learner, budget=Budget(macs=0.8))
    plan = env.uniform_plan()

    def by_hand(network):
        convolutions = sum(network.enter[i].weight.numel() for i in (0, 2))
        recurrent = sum(w.numel() for w in network.recurrent.parameters() if w.dim() == 2)
        linear = network.hidden.weight.numel() + network.leave.weight.numel()
        return STEPS * (convolutions + recurrent) + linear

    ratio = by_hand(learner.compress(plan)) / by_hand(net)
    assert 0.6 < ratio <= 0.8
    assert env.cost_ratio(plan)["macs"] == pytest.approx(ratio, rel=1e-6)


def test_costs_that_nothing_changes_are_named_with_their_share():
    net, example = build("products")
    graph = trace(net, example).graph
    layer = graph.layer("both._trilinear")
    assert (layer.kind, layer.macs(graph.full()), layer.weights(graph.full())) == (
        "fixed", 12 * 8 * 8, 0.0,
    )  # fmt: skip
    share = 12 * 8 * 8 / counted_macs(net, example)
    assert graph.fixed_shares()[layer.name] == pytest.approx(share)
    (remark,) = graph.remarks()
    assert "of the multiply-adds are in operations that no cut" in remark
    assert f"both._trilinear ({share:.1%})" in remark
    assert "fixed" in graph.frozen["both"]


def test_other_costs_count_fixed_operations_in_full_precision():
    net, example = build("products")
    graph = trace(net, example).graph
    decisions = decisions_of(graph)
    macs = make_cost("macs", graph, decisions)
    half = [d.nearest(0.5) for d in decisions]
    assert make_cost("bops", graph, decisions)(half) == 32 * 32 * macs(half)
    assert make_cost("density", graph, decisions).original(decisions) == 1.0
    assert 0.0 < make_cost("density", graph, decisions)(half) < 1.0


def test_layers_that_did_not_run_are_named_with_their_share_of_the_parameters():
    net, example = build("experts")
    graph = trace(net, example).graph
    with torch.no_grad():
        chosen = int(net.gate(net.enter(example.flatten(1)).relu()).argmax())
    idle = [i for i in range(3) if i != chosen]
    share = sum(p.numel() for i in idle for p in net.experts[i].parameters())
    share /= sum(p.numel() for p in net.parameters())
    (note,) = graph.notes
    assert note.startswith(f"{share:.1%} of the parameters did nothing on the example (")
    assert all(f"experts.{i}.{j}" in note for i in idle for j in (0, 2))
    assert f"experts.{chosen}" not in note
    assert note in graph.remarks()


def _surgeon(net, example, change):
    """Of a traced network, with a graph that was tampered with."""
    traced = trace(net, example)
    surgeon = traced._surgeon
    surgeon.grouping.graph = change(traced.graph)
    return surgeon


def test_what_the_graph_does_not_express_becomes_a_fixed_cost():
    net, example = build("conv1d")
    surgeon = _surgeon(
        net, example, lambda g: replace(g, layers=g.layers[:-1], other_parameters=45)
    )
    claims = Claims(surgeon, (example,), 1)
    assert claims.surplus == 8 * CLASSES
    *_, last = claims.completed().layers
    assert (last.kind, last.in_width, last.out_width) == ("fixed", Width(40), Width(1))
    # The last layer's share of the second group is missing wherever that is cut.
    assert set(claims.faults(torch.Generator().manual_seed(0))) == {"2"}


def test_what_the_graph_claims_too_much_is_noted():
    net, example = build("conv1d")
    extra = LayerSpec("more", "fixed", Width(500), Width(1))
    surgeon = _surgeon(net, example, lambda g: replace(g, layers=(*g.layers, extra)))
    claims = Claims(surgeon, (example,), 1)
    assert "500 multiply-adds are claimed" in claims.completed().notes[0]
    assert not claims.faults(torch.Generator().manual_seed(0))


class Checked(nn.Module):
    """Does more while a layer is narrow, to no effect."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.body, self.leave = nn.Linear(9, 8), nn.Linear(8, 12), nn.Linear(12, 5)

    def forward(self, x):
        t = self.body(self.enter(x).relu()).relu()
        if self.enter.weight.shape[0] < 6:
            t = t + 0 * (t @ torch.ones(t.shape[1], t.shape[1]))
        return self.leave(t)


def test_groups_whose_cut_breaks_the_claim_stay_whole():
    torch.manual_seed(0)
    net, example = Checked().eval(), torch.randn(1, 9)
    graph = trace(net, example).graph
    assert [group.name for group in graph.groups] == ["body"]
    assert graph.frozen["enter"] == "a cut leaves 225 multiply-adds instead of 81"


def test_recurrent_kernels_are_counted_by_their_formulas():
    steps, batch, width, state = 7, 3, 8, 6
    x = torch.randn(steps, batch, width)
    for kind, gates in ((nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)):
        one = steps * batch * gates * state * (width + state)
        above = steps * batch * gates * state * (2 * state + state)
        assert count_macs(kind(width, state).eval(), (x,)) == one
        both = kind(width, state, 2, bidirectional=True).eval()
        assert count_macs(both, (x,)) == 2 * one + 2 * above
    projected = steps * batch * (4 * state * (width + 2) + state * 2)
    with warnings.catch_warnings():  # it comes once in a process
        warnings.filterwarnings("ignore", "LSTM with projections")
        assert count_macs(nn.LSTM(width, state, proj_size=2).eval(), (x,)) == projected
    packed = nn.utils.rnn.pack_padded_sequence(x, [7, 5, 2])
    assert count_macs(nn.LSTM(width, state).eval(), (packed,)) == 14 * 4 * state * (width + state)


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, *inputs):
        return self.function(*inputs)


@pytest.mark.parametrize(
    ("function", "shapes", "macs"),
    [
        (F.scaled_dot_product_attention, [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 8)], 4480),
        (F.scaled_dot_product_attention, [(2, 4, 5, 8), (2, 4, 7, 8), (2, 4, 7, 3)], 3080),
        (
            lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
            [(2, 6, 5, 8), (2, 2, 7, 8), (2, 2, 7, 8)],
            2 * 2 * 6 * 5 * 7 * 8,
        ),
        (torch.mv, [(5, 7), (7,)], 35),
        (torch.addmv, [(5,), (5, 7), (7,)], 35),
        (torch.dot, [(7,), (7,)], 7),
        (torch.addbmm, [(4, 6), (2, 4, 5), (2, 5, 6)], 2 * 4 * 5 * 6),
        (torch.baddbmm, [(2, 4, 6), (2, 4, 5), (2, 5, 6)], 2 * 4 * 5 * 6),
        (lambda a, b: torch.einsum("bij,bjk->bik", a, b), [(2, 4, 5), (2, 5, 6)], 240),
        (F.bilinear, [(5, 8), (5, 6), (4, 8, 6)], 5 * 4 * 8 * 6),
        (F.conv_transpose1d, [(2, 4, 9), (4, 6, 3)], 2 * 9 * 4 * 6 * 3),
        (F.embedding, [None, (10, 4)], 0),
        (torch.add, [(5, 7), (7,)], 0),
    ],
)
def test_operations_are_counted_by_their_formulas(function, shapes, macs):
    inputs = [torch.arange(3) if shape is None else torch.randn(shape) for shape in shapes]
    assert count_macs(Call(function), inputs) == macs


def test_shared_parameters_and_lost_buffers_are_no_bytes():
    net, _ = build("shared")
    numbers = math.fsum(p.numel() for p in net.parameters())
    assert (count_parameters(net), count_bytes(net)) == (numbers, 4 * numbers)
    net, _ = build("buffers")
    floats = count_parameters(net) + 2 * 12 + 12  # statistics and scales
    assert count_bytes(net) == 4 * floats + 8 * (12 + 1)  # powers and the counter of batches


def test_remarks_are_few_where_everything_can_be_cut():
    layers = (LayerSpec("a", "linear", Width(4), Width(0, (("a", 1),))),)
    groups = (ChannelGroup("a", 8, ("a",), ()),)
    assert LayerGraph(layers, groups).remarks() == ()
    fixed = tuple(LayerSpec(f"f{i}", "linear", Width(4), Width(8 - i)) for i in range(7))
    (remark,) = LayerGraph((*layers, *fixed), groups).remarks()
    assert "f0 (18.6%), f1 (16.3%), " in remark
    assert "f4 (9.3%) and 2 more" in remark


@pytest.mark.parametrize(("kind", "macs", "informs"), [
    ("fixed", 9, False), ("fixed", 11, True), ("linear", 49, False), ("linear", 53, True),
])  # fmt: skip
def test_a_share_is_named_only_where_it_informs(kind, macs, informs):
    cut = LayerSpec("a", "linear", Width(999), Width(0, (("a", 1),)))
    graph = LayerGraph(
        (
            cut,
            LayerSpec("outside", kind, Width(macs), Width(1)),
            LayerSpec("f", kind, Width(1), Width(1)),
        ),
        (ChannelGroup("a", 1, ("a",), ()),),
    )
    remarks = graph.remarks()
    assert bool(remarks) == informs
    # What is less than a thousandth of all has no share worth a name.
    assert all(x.endswith(f"outside ({macs / (1000 + macs):.1%}).") for x in remarks)


class Reader(nn.Module):
    """Reads a memory; what asks is learned, and handed on for every sample."""

    def __init__(self):
        super().__init__()
        self.keys, self.last = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, asking, memory):
        return asking + self.last(self.keys(memory).relu()).mean(1, keepdim=True)


class Latents(nn.Module):
    def __init__(self, trained):
        super().__init__()
        self.stem, self.reader, self.head = nn.Linear(6, 8), Reader(), nn.Linear(8, 3)
        self.asking = nn.Parameter(torch.randn(1, 4, 8), requires_grad=trained)

    def forward(self, x):
        return self.head(
            self.reader(self.asking.expand(len(x), -1, -1), memory=self.stem(x)).mean(1)
        )


@pytest.mark.parametrize("trained", [True, False])
def test_a_module_may_be_called_with_a_view_of_a_parameter(trained):
    net = Latents(trained)
    example = torch.randn(1, 5, 6)
    assert count_macs(net, (example,)) == counted_macs(net.requires_grad_(False), example)
    net.asking.requires_grad_(trained)
    assert "reader.keys" in {group.name for group in trace(net, example).graph.groups}
    assert net.asking.requires_grad == trained
