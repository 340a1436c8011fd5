"""GroupLassoPruning keeps the contract; its iteration against one on explicit inputs.

What it shares with RemasteredPruning is tested here for both.
"""

from __future__ import annotations

import copy
import pickle
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from contracts.precision_contract import PrecisionContract
from support.once import copies
from support.selection import quick
from torch import nn

from amc_compress.learners import ChannelPruning, GroupLassoPruning, RemasteredPruning
from amc_compress.learners.candidates.input_moments import InputStatistics
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.group_lasso import largest_eigenvalue, shrunk_norms
from amc_compress.learners.channel_pruning.sensitivity import error_curves
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_env import CompressionPlan

BOTH = pytest.mark.parametrize("make", [GroupLassoPruning, RemasteredPruning])


class TestGroupLassoPruning(PrecisionContract):
    def make(self, model, example, calibration, validation, **options):
        return GroupLassoPruning(model, example, calibration, validation, **options)


@copies
def prepared(make, model, **options):
    options = {"precision": "fp32", "round_to": 4, **options}
    return make(model, EXAMPLE, make_data(96, 2), make_data(64, 3), **options)


# ----------------------------------------------------------------------------- the iteration


def consumer(seed, groups, outputs, per_unit, size, scale):
    """Explicit inputs and weights of a layer that reads ``size`` units, shuffled, and two more."""
    generator = torch.Generator().manual_seed(seed)
    n = (size + 2) * per_unit
    mix = torch.eye(n) + 0.3 * torch.randn(n, n, generator=generator)
    inputs = (torch.randn(groups, 80, n, generator=generator) @ mix * scale).double()
    weight = torch.randn(groups * outputs, size + 2, per_unit, generator=generator) / scale
    statistics = InputStatistics(inputs.transpose(1, 2) @ inputs, inputs.sum(1), 80)
    layer = LayerReconstruction(weight, None, statistics)
    channels = torch.randperm(size + 2, generator=generator)[:size]
    columns = channels[:, None] * per_unit + torch.arange(per_unit)
    return layer, inputs.numpy(), weight.double().reshape(groups, outputs, n).numpy(), columns


def slow_norms(consumers, count, iterations):
    """The same steps on inputs and outputs, in plain weights, unit by unit."""
    size = len(consumers[0][3])
    state = []
    for _, x, w, columns in consumers:
        read = columns.flatten().tolist()
        rest = [c for c in range(w.shape[2]) if c not in read]
        whole = np.einsum("grn,gon->gro", x, w)
        y = whole - np.einsum("grn,gon->gro", x[:, :, rest], w[:, :, rest])
        mine = np.einsum("grn,grm->gnm", x[:, :, read], x[:, :, read])
        energy = (whole**2).sum()
        curvature = max(np.linalg.eigvalsh(g)[-1] for g in mine) / energy
        state.append([x, w.copy(), columns.tolist(), read, y, energy, curvature])
    norms = np.zeros(size)
    for t in range(iterations):
        squares = np.zeros(size)
        for x, w, columns, read, y, energy, curvature in state:
            residual = np.einsum("grn,gon->gro", x[:, :, read], w[:, :, read]) - y
            w[:, :, read] -= np.einsum("gro,grn->gon", residual, x[:, :, read]) / energy / curvature
            for unit in range(size):
                squares[unit] += curvature * (w[:, :, columns[unit]] ** 2).sum()
        norms = np.sqrt(squares)
        threshold = np.percentile(norms, 100.0 * (size - count) / size * (t + 1) / iterations)
        for _, w, columns, *_ in state:
            for unit in range(size):
                w[:, :, columns[unit]] *= max(0.0, 1.0 - threshold / norms[unit])
    alive = [any((w[:, :, columns[u]] != 0).any() for _, w, columns, *_ in state)
             for u in range(size)]  # fmt: skip
    return norms, np.flatnonzero(alive)


CONSUMERS = {
    "linear": [(0, 1, 5, 1, 9, 1.0)],
    "convolution": [(1, 1, 4, 9, 9, 1.0)],
    "grouped": [(2, 3, 2, 4, 9, 1.0)],
    "several": [(3, 1, 5, 9, 9, 1.0), (4, 2, 3, 1, 9, 50.0), (5, 1, 2, 4, 9, 0.01)],
}


@pytest.mark.parametrize("name", CONSUMERS)
def test_iteration_equals_the_one_on_explicit_inputs(name, monkeypatch):
    exact = lambda gram: float(torch.linalg.eigvalsh(gram).max())  # noqa: E731
    monkeypatch.setattr(
        "amc_compress.learners.channel_pruning.group_lasso.largest_eigenvalue", exact
    )
    problem = [consumer(*arguments) for arguments in CONSUMERS[name]]
    layers = [(layer, columns) for layer, _, _, columns in problem]
    for count in (1, 4, 8):
        expected, alive = slow_norms(problem, count, 40)
        found = shrunk_norms(layers, count, 40)
        np.testing.assert_allclose(found.numpy(), expected, rtol=1e-7, atol=1e-9)
        assert len(alive) == count
        assert set(found.topk(count).indices.tolist()) == set(alive.tolist())


def test_moments_in_float32_give_the_same_units():
    """Layers of more than 1,024 columns keep theirs in half the memory."""
    layer, _, _, columns = consumer(1, 1, 4, 9, 9, 1.0)
    halved = copy.copy(layer)
    halved._gram, halved._weight = layer.gram.float(), layer.weight.float()
    exact, found = (shrunk_norms([(read, columns)], 4, 40) for read in (layer, halved))
    torch.testing.assert_close(found, exact, rtol=1e-3, atol=1e-5)


def test_wide_layers_are_selected_for():
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 1200), nn.ReLU(), nn.Linear(1200, 4))
    learner = prepared(GroupLassoPruning, model, round_to=400, iterations=3)
    (decision,) = learner.decisions
    assert len(set(learner.select(decision.target, 400).tolist())) == 400


@pytest.mark.parametrize("exact_size", [0, 1024])
def test_the_largest_eigenvalue_is_found_or_approached_from_below(exact_size, monkeypatch):
    monkeypatch.setattr("amc_compress.learners.channel_pruning.group_lasso._EXACT_SIZE", exact_size)
    for seed in range(5):
        layer = consumer(seed, 3, 2, 4, 9, 1.0)[0]
        exact = float(torch.linalg.eigvalsh(layer.gram).max())
        assert 0.97 * exact <= largest_eigenvalue(layer.gram) <= exact * (1 + 1e-9)
    assert largest_eigenvalue(torch.zeros(2, 4, 4)) == 0.0
    # One input with the largest energy, alone; ten with less each, together.
    blocks = torch.zeros(1, 11, 11, dtype=torch.float64)
    blocks[0, 0, 0], blocks[0, 1:, 1:] = 1.1, 1.0
    assert largest_eigenvalue(blocks) == pytest.approx(10.0, rel=1e-9)


def test_consumers_count_alike_whatever_the_size_of_their_inputs():
    """Inputs times 50 and weights divided by 50 are the same layer."""
    plain = [consumer(3, 1, 5, 9, 9, 1.0), consumer(4, 2, 3, 1, 9, 1.0)]
    scaled = [plain[0], consumer(4, 2, 3, 1, 9, 50.0)]
    first, second = (shrunk_norms([(c[0], c[3]) for c in p], 4, 40) for p in (plain, scaled))
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-6)


# ----------------------------------------------------------------------------- both selections

INFORMATIVE = [1, 2, 6, 11]


def constructed():
    """Sixteen hidden units: four vary, twelve hardly do but are read with larger weights."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 4))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        scale = torch.full((16, 1), 0.002)
        scale[INFORMATIVE] = 0.1
        model[1].weight.copy_(torch.randn(16, 192, generator=generator) * scale)
        read = torch.randn(4, 16, generator=generator).sign()
        read[:, INFORMATIVE] *= 0.8
        model[3].weight.copy_(read)
    return model


@BOTH
def test_known_informative_channels_are_found_and_random_ones_lose_more(make):
    learner = prepared(make, constructed())
    group = learner.decisions[0].target
    assert learner.select(group, 4).tolist() == INFORMATIVE
    assert prepared(ChannelPruning, constructed()).select(group, 4).tolist() != INFORMATIVE
    own = learner.layer_errors()[learner.decisions[0].key][0]
    for seed in range(5):
        other = prepared(ChannelPruning, constructed(), criterion="random", seed=seed)
        assert own < 0.2 * other.layer_errors()[other.decisions[0].key][0]


def grouped():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 12, 3, groups=2), nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Flatten(), nn.Linear(12 * 16, 4),
    )  # fmt: skip


@cache
def network(name):
    if name != "grouped":
        return make_model(name)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return grouped()


@BOTH
@pytest.mark.parametrize("name", quick(["residual", "depthwise", "grouped"], "grouped"))
def test_selections_lose_less_than_random_ones(make, name):
    learner = prepared(make, network(name), round_to=1, n_calibration=48)
    own = learner.layer_errors()
    generator = torch.Generator().manual_seed(0)
    for decision in learner.decisions:
        parts = [decision], learner.traced, learner._layers

        def randomly(_, count, size=decision.size):
            return torch.randperm(size, generator=generator)[:count].sort().values

        mean = np.mean([error_curves(*parts, randomly)[decision.key][:-1].mean() for _ in range(3)])
        assert own[decision.key][:-1].mean() < mean, decision.key
        for choice in decision.choices:
            kept = learner.select(decision.target, decision.units(choice)).tolist()
            assert kept == sorted(set(kept))
            assert len(kept) == decision.units(choice)
            assert 0 <= kept[0] <= kept[-1] < decision.size


class Unseen(nn.Module):
    """Reads the hidden units with a function, so that no input of the layer is recorded."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(192, 16)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        return F.linear(F.relu(self.first(x.flatten(1))), self.head.weight, self.head.bias)


@BOTH
def test_groups_without_a_known_reader_are_ranked_by_l1(make):
    model = Unseen()
    with torch.no_grad():
        model.head.weight[:, [3, 5]] += torch.tensor([3.0, 4.0])
    learner = prepared(make, model, round_to=1)
    assert learner.select("first", 1).tolist() == [5]
    assert learner.select("first", 2).tolist() == [3, 5]
    expected = prepared(ChannelPruning, model, round_to=1)
    assert all(torch.equal(learner.select("first", k), expected.select("first", k))
               for k in range(1, 17))  # fmt: skip


@BOTH
def test_selections_do_not_depend_on_what_was_asked_before(make):
    first, second = (prepared(make, network("residual"), round_to=4) for _ in range(2))
    asked = [(d.target, d.units(c)) for d in first.decisions for c in d.choices]
    forward = [first.select(*pair).tolist() for pair in asked]
    assert [second.select(*pair).tolist() for pair in reversed(asked)] == forward[::-1]
    twin = pickle.loads(pickle.dumps(first))
    assert [twin.select(*pair).tolist() for pair in asked] == forward
    first.select(*asked[0]).zero_()
    assert first.select(*asked[0]).tolist() == forward[0]


@pytest.mark.parametrize("make", [GroupLassoPruning, RemasteredPruning, ChannelPruning])
@pytest.mark.parametrize(
    ("group", "count", "sentence"),
    [
        ("conv1", -1, "1 to 16 units"),
        ("conv1", 2.5, r"1 to 16 units .* got 2\.5"),
        ("conv1", 0, "1 to 16 units"),
        ("conv1", 17, "1 to 16 units"),
        ("conv9", 4, "No channel group named 'conv9'"),
    ],
)
def test_selections_that_cannot_be_are_rejected(make, group, count, sentence):
    learner = prepared(make, network("residual"))
    for choose in (learner.select, getattr(learner, "lasso", learner.select)):
        with pytest.raises(ValueError, match=sentence):
            choose(group, count)


def test_no_iterations_are_rejected():
    for iterations, expected in ((0, ">= 1, a whole number"), (2.5, "to be a whole number")):
        with pytest.raises(ValueError, match=f"iterations {expected}, got {iterations}"):
            prepared(GroupLassoPruning, network("plain"), iterations=iterations)


@BOTH
def test_the_uncut_group_is_whole(make):
    learner = prepared(make, network("plain"))
    assert learner.select("0", 16).tolist() == list(range(16))
    assert learner.kept_units(CompressionPlan.full(learner.decisions)) == {}
