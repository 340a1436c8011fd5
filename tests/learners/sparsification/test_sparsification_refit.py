"""The re-fit against an explicit least-squares solve per output row on the raw patches."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.once import copies
from torch import nn

from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import (
    LayerReconstruction,
    prepare_reconstruction,
)
from amc_compress.learners.sparsification import Pattern
from amc_compress.learners.sparsification.refit import refit, relative_error

LAYERS = {
    "convolution": lambda: nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "with bias": lambda: nn.Conv2d(6, 5, 3, padding=1),
    "grouped": lambda: nn.Conv2d(6, 4, 3, padding=1, groups=2),
    "depthwise": lambda: nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False),
    "linear": lambda: nn.Linear(20, 7),
}


@copies
def prepared(name: str) -> tuple[nn.Module, torch.Tensor, LayerReconstruction]:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layer = LAYERS[name]()
        shape = (20, 6, 5, 5) if name != "linear" else (300, 20)
        x = torch.randn(shape) + 0.3
        x += 0.7 * x.roll(1, 1)  # correlated inputs: there is something to repair
    moments = collect_statistics(layer, [x], [""], positions=10**6)
    return layer, x, prepare_reconstruction(layer, moments)[""]


def rows_of(layer: nn.Module, x: torch.Tensor) -> list[tuple[np.ndarray, int]]:
    """Patches and convolution group of every output row, by ``F.unfold``."""
    if isinstance(layer, nn.Linear):
        return [(x.double().numpy(), 0)] * layer.out_features
    found = []
    for output in range(layer.out_channels):
        group = output * layer.groups // layer.out_channels
        part = x.chunk(layer.groups, 1)[group]
        patches = F.unfold(part, 3, padding=1).transpose(1, 2).flatten(0, 1)
        found.append((patches.double().numpy(), group))
    return found


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("density", [0.6, 0.25])
def test_every_row_is_the_least_squares_solution_on_its_support(name, density):
    layer, x, statistics = prepared(name)
    mask = Pattern.parse("unstructured").mask(layer.weight, round(density * layer.weight.numel()))
    weight, bias = refit(statistics, mask, iterations=200, tolerance=0.0)
    assert (bias is None) == (layer.bias is None)
    assert not weight[~mask].any()
    lost = energy = 0.0
    for output, (patches, _) in enumerate(rows_of(layer, x)):
        row = layer.weight[output].detach().double().flatten().numpy()
        support = mask[output].flatten().numpy()
        columns, y = patches[:, support], patches @ row
        if layer.bias is not None:
            columns = np.column_stack([columns, np.ones(len(columns))])
            y = y + layer.bias[output].item()
        expected = np.linalg.lstsq(columns, y, rcond=None)[0]
        found = weight[output].flatten().double().numpy()[support]
        if layer.bias is not None:
            assert bias[output].item() == pytest.approx(expected[-1], abs=1e-3)
            expected = expected[:-1]
        assert found == pytest.approx(expected, abs=1e-3)
        off = y - (patches @ weight[output].double().flatten().numpy())
        if layer.bias is not None:
            off, y = off - off.mean(), y - y.mean()
        lost, energy = lost + (off**2).sum(), energy + (y**2).sum()
    assert relative_error(statistics, weight) == pytest.approx(lost / energy, rel=1e-3)


@pytest.mark.parametrize("name", LAYERS)
def test_stopping_where_little_is_gained_loses_little(name):
    layer, _, statistics = prepared(name)
    mask = Pattern.parse("unstructured").mask(layer.weight, layer.weight.numel() // 2)
    masked = relative_error(statistics, layer.weight.detach() * mask)
    errors = [
        relative_error(statistics, refit(statistics, mask, iterations=n, tolerance=0.0)[0])
        for n in (1, 3, 10, 200)
    ]
    assert masked > errors[0]
    assert all(a >= b - 1e-9 for a, b in pairwise(errors))
    usual = relative_error(statistics, refit(statistics, mask)[0])
    assert usual - errors[-1] <= 0.01 * (masked - errors[-1])


def test_nothing_is_done_where_nothing_is_lost_or_nothing_is_left():
    layer, _, statistics = prepared("with bias")
    all_of_it, bias = refit(statistics, torch.ones_like(layer.weight, dtype=torch.bool))
    assert torch.allclose(all_of_it, layer.weight, atol=1e-6)
    assert torch.allclose(bias, layer.bias, atol=1e-6)
    nothing, bias = refit(statistics, torch.zeros_like(layer.weight, dtype=torch.bool))
    assert not nothing.any()
    # What remains of the layer is the mean of its outputs.
    assert bias.isfinite().all()
    assert relative_error(statistics, nothing) == pytest.approx(1.0)


def test_inputs_that_are_always_zero_leave_their_weights_alone():
    layer = nn.Linear(4, 3, bias=False)
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    x[:, 2] = 0.0
    moments = collect_statistics(layer, [x], [""], positions=10)
    statistics = prepare_reconstruction(layer, moments)[""]
    mask = torch.ones(3, 4, dtype=torch.bool)
    mask[:, 0] = False
    weight, _ = refit(statistics, mask)
    assert torch.equal(weight[:, 2], layer.weight[:, 2].detach())


@pytest.mark.parametrize("columns", [16, 120])
@pytest.mark.parametrize("spread", [1.0, 1e-2, 1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("density", [0.25, 0.75])
def test_inputs_that_hardly_vary_are_fitted_as_well_as_others(columns, spread, density):
    """Pooled inputs of squeeze-and-excitation: the error depends on the spread not at all."""
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.Linear(columns, columns)
    mean = 3.0 * torch.rand(columns, generator=generator)
    x = mean + spread * torch.randn(512, columns, generator=generator)
    moments = collect_statistics(layer, list(x.split(64)), [""])
    statistics = prepare_reconstruction(layer, moments)[""]
    mask = Pattern.parse("unstructured").mask(layer.weight, round(density * layer.weight.numel()))
    weight, bias = refit(statistics, mask)
    assert bias is not None
    assert weight.abs().max() < 2 * layer.weight.abs().max()
    lost = x.double() - x.double().mean(0)
    wrong = lost @ (layer.weight - weight).double().T
    masked = lost @ (layer.weight * ~mask).double().T
    assert wrong.square().sum() <= masked.square().sum()
    shift = mean.double() @ (layer.weight - weight).double().T + (layer.bias - bias).double()
    assert shift.abs().max() <= 5e-6 + 0.5 * spread


def test_moments_of_steady_inputs_agree_with_double_precision():
    generator = torch.Generator().manual_seed(3)
    x = torch.cat(
        (1e4 + torch.randn(400, 3, generator=generator), torch.randn(400, 3, generator=generator)),
        1,
    )
    layer = nn.Linear(6, 2)
    found = collect_statistics(layer, list(x.split(100)), [""])[""]
    exact = x.double()
    centred = exact - exact.mean(0)
    torch.testing.assert_close(found.mean()[0], exact.mean(0), rtol=1e-7, atol=1e-6)
    torch.testing.assert_close(found.centred()[0], centred.T @ centred, rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(found.uncentred()[0], exact.T @ exact, rtol=1e-6, atol=1e-2)
