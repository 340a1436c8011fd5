"""Nested factorisation against plain least squares, cut by cut."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selection import quick
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning
from amc_compress.learners.candidates import reconstruction
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.moments import nested
from amc_compress.learners.candidates.moments.nested import NestedLeastSquares, factorised
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.channel_pruning.chains import Measure, levels_of, summed_over_readers
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_env import CompressionPlan

ROWS, OUTPUTS = 60, 3


def inputs_of(columns: int, seed: int) -> Tensor:
    """Correlated columns of very different size; one is dead, one a copy of another."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    scale = torch.logspace(0, -3, columns, dtype=torch.float64)
    x = torch.randn(ROWS, columns, generator=generator, dtype=torch.float64) @ mix * scale
    x[:, 1] = x[:, 0]
    x[:, 2] = 0.0
    return x


def fitted(x: Tensor, weight: Tensor, kept: Tensor, damping: float) -> tuple[Tensor, float]:
    """Least squares with rows for the ridge: ``W'^T`` and the minimum."""
    rows = torch.cat([x[:, kept], damping**0.5 * torch.eye(len(kept), dtype=x.dtype)])
    right = torch.cat([x @ weight.T, damping**0.5 * weight[:, kept].T])
    solution = torch.linalg.lstsq(rows, right, driver="gelsd").solution
    return solution, float((rows @ solution - right).square().sum())


@given(st.integers(4, 24), st.integers(0, 10_000), st.data())
def test_every_subset_is_solved_as_by_least_squares(
    columns: int, seed: int, data: st.DataObject
) -> None:
    x, order = inputs_of(columns, seed), torch.tensor(data.draw(st.permutations(range(columns))))
    weight = torch.randn(OUTPUTS, columns, dtype=torch.float64)
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, columns - 1), min_size=1))))
    whole = (x @ weight.T).norm()
    # Copies of a column with a small ridge are hard in float32, for a solve of its own as well.
    for dtype, tolerance in ((torch.float64, 1e-9), (torch.float32, 0.05)):
        nest = NestedLeastSquares((x.T @ x).to(dtype), order, 1e-6)
        found = nest.solve(kept, nest.right(weight.to(dtype)))
        assert found is not None
        expected, _ = fitted(x, weight, kept, nest.damping)
        assert (x[:, kept] @ (found.double() - expected)).norm() <= tolerance * whole


@given(st.integers(5, 24), st.integers(0, 10_000), st.data())
def test_errors_of_chains_are_the_minima(columns: int, seed: int, data: st.DataObject) -> None:
    x, order = inputs_of(columns, seed), torch.tensor(data.draw(st.permutations(range(columns))))
    weight = torch.randn(OUTPUTS, columns, dtype=torch.float64)
    nest = NestedLeastSquares(x.T @ x, order, 1e-6)
    chains = [
        list(order[2:].flip(0).split(3)),  # along the order: the last columns first
        list(order[torch.randperm(columns)[: columns // 2]].split(2)),
    ]
    found = nest.errors(chains, weight)
    assert found is not None
    whole = float((x @ weight.T).square().sum())
    for chain, errors in zip(chains, found, strict=True):
        gone: set[int] = set()
        for step, error in zip(chain, errors.tolist(), strict=True):
            gone |= set(step.tolist())
            kept = torch.tensor([i for i in range(columns) if i not in gone])
            _, expected = fitted(x, weight, kept, nest.damping)
            assert error == pytest.approx(expected, rel=1e-6, abs=1e-9 * whole)


def test_a_matrix_is_damped_until_it_has_a_factor_and_is_left_alone() -> None:
    matrix = torch.tensor([[1.0, 1.5], [1.5, 1.0]])
    before = matrix.clone()
    found = factorised(matrix, [0.0, 0.1, 1.0])
    assert found is not None
    assert found[1] == 1.0
    torch.testing.assert_close(found[0] @ found[0].T, matrix + torch.eye(2))
    assert torch.equal(matrix, before)
    assert factorised(matrix, [0.0, 0.1]) is None
    nest = NestedLeastSquares(torch.full((2, 2), torch.nan), torch.arange(2), 1e-6)
    assert not nest.is_solved
    assert nest.errors([[torch.tensor([0])]], matrix) is None


# ---------------------------------------------------------------------- layers


def layer_of(module: nn.Module, ridge: float = 1e-6) -> LayerReconstruction:
    images = torch.randn(40, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    images[:, 1] = images[:, 0] * 0.7 + 0.5 * images[:, 1] + 0.2
    statistics = collect_statistics(module, [images], [""], positions=10**6)[""]
    assert isinstance(module.weight, Tensor)
    bias = module.bias if isinstance(module.bias, Tensor) else None
    return LayerReconstruction(module.weight, bias, statistics, ridge)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_is_solved_along_its_order(
    groups: int, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    conv = nn.Conv2d(8, 6, 3, groups=groups, bias=bias)
    width = 8 // groups
    alone, wide = layer_of(conv), layer_of(conv)
    wide.order = torch.randperm(width)
    gram, target = wide.gram, wide.target
    monkeypatch.setattr(reconstruction, "_WIDE", 0)
    cuts = [wide.order[:3].sort().values, wide.order[[0, 2]].sort().values, torch.arange(width)]
    for inputs in cuts:
        outputs = torch.tensor([0, 2, 5])
        expected, found = alone.solve(inputs, outputs), wide.solve(inputs, outputs)
        torch.testing.assert_close(found[0], expected[0], rtol=1e-3, atol=1e-4)
        if bias:
            torch.testing.assert_close(found[1], expected[1], rtol=1e-3, atol=1e-4)
    assert wide._gram is None  # the factor has taken its place
    torch.testing.assert_close(wide.gram, gram)
    torch.testing.assert_close(wide.target, target)
    written = pickle.dumps(wide)
    twin = pickle.loads(written)
    assert torch.equal(twin.solve(cuts[1])[0], wide.solve(cuts[1])[0])


# ---------------------------------------------------------------------- networks


class Concat(nn.Module):
    """Layers that read several groups, as in a dense block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.Conv2d(8, 6, 3, padding=1)
        self.second = nn.Conv2d(14, 6, 3, padding=1)
        self.head = nn.Linear(20, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = torch.cat([x, self.first(x).relu()], 1)
        x = torch.cat([x, self.second(x).relu()], 1)
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits


def test_a_group_without_a_choice_loses_nothing() -> None:
    learner = prepared("concat", 8)  # of 8, 6 and 6 channels
    assert min(len(d.choices) for d in learner.decisions) == 1
    for curves in (learner.layer_errors(), learner.gradient_scores()):
        assert all(curve[-1] == 0.0 for curve in curves.values())


def prepared(name: str, round_to: int) -> ChannelPruning:
    model = Concat() if name == "concat" else make_model(name)
    data = EXAMPLE, make_data(96, 2), make_data(64, 3)
    return ChannelPruning(model.eval(), *data, round_to=round_to, precision="fp32")


@pytest.mark.parametrize("name", quick([*sorted(NETWORKS), "concat"], "residual", "concat"))
def test_error_curves_are_those_of_single_cuts(name: str) -> None:
    learner = prepared(name, 3)
    layers = learner._layers
    one_by_one = Measure(
        rows=lambda _: None,
        direct=lambda name, inputs: layers[name].squared_error(inputs),
        is_fitted=False,
        scale=lambda _: 1.0,
    )
    parts = learner.decisions, learner.traced, layers, learner.select
    slow, found = summed_over_readers(*parts, one_by_one), learner.layer_errors()
    for d in learner.decisions:
        group = next(g for g in learner.graph.groups if g.name == d.target)
        energy = sum(layers[n].energy for n in group.consumers if n in layers)
        assert levels_of(d, learner.select) is not None
        np.testing.assert_allclose(found[d.key], slow[d.key] / energy, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize("name", ["residual", "concat"])
def test_plans_of_wide_layers_are_repaired_as_those_of_narrow_ones(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    learner = prepared(name, 2)
    even = CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})
    uneven = CompressionPlan(
        {d.key: d.choices[i % len(d.choices)] for i, d in enumerate(learner.decisions)}
    )
    kept = learner.kept_units(even)
    for layer_name, layer in learner._layers.items():
        inputs = learner.traced.kept_inputs(layer_name, kept)
        assert layer.order is not None or len(inputs) == layer.shape[1]
        if layer.order is not None:  # the even plan keeps its beginning
            assert sorted(layer.order[: len(inputs)].tolist()) == inputs.tolist()
    alone = [learner.compress(plan).state_dict() for plan in (even, uneven)]
    scores = learner.gradient_scores()
    monkeypatch.setattr(reconstruction, "_WIDE", 0)
    for plan, before in zip((even, uneven), alone, strict=True):
        for key, value in learner.compress(plan).state_dict().items():
            torch.testing.assert_close(value, before[key], rtol=1e-3, atol=1e-4)
    for key, curve in learner.gradient_scores().items():
        np.testing.assert_allclose(curve, scores[key], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("size", [3, 8, 29])
def test_a_triangular_system_is_solved_by_halves(size: int, monkeypatch) -> None:
    monkeypatch.setattr(nested, "_SOLVED_AT_ONCE", 4)
    factor = torch.randn(40, 40, dtype=torch.float64).tril()
    factor.diagonal().abs_().add_(1.0)
    upper, right = factor[:size, :size].mT, torch.randn(size, 5, dtype=torch.float64)
    found = nested._solved_from_below(upper, right)
    torch.testing.assert_close(upper @ found, right)
