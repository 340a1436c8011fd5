"""The formula behind gradient scores: against loops over images, positions and weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.gradient_scores import LAYERS, X, Y, rows_of, shift_gradients, slow_rise, tiny
from torch import nn

from amc_compress.learners.candidates.gradient_scores import (
    curvature_root,
    falling,
    rise_from_covariance,
    rise_from_weights,
    weight_fisher,
)
from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import prepare_reconstruction


@pytest.mark.parametrize("layer", LAYERS)
def test_the_root_is_that_of_the_fisher_information_of_a_shift(layer):
    network = tiny()
    root = curvature_root(network, [(X[:50], Y[:50]), (X[50:], Y[50:])], LAYERS)[layer].double()
    gradients = shift_gradients(network, layer)
    expected = gradients.T @ gradients / len(gradients)
    assert root.shape == gradients.shape
    torch.testing.assert_close(root.T @ root, expected, rtol=1e-4, atol=1e-9)


def test_working_in_place_changes_no_gradient():
    batches = [(X, Y)]
    plain, inplace = (curvature_root(tiny(how), batches, LAYERS) for how in (False, True))
    for name in LAYERS:
        torch.testing.assert_close(plain[name], inplace[name], rtol=1e-5, atol=1e-8)


def test_layers_off_the_way_from_images_to_the_loss_have_no_root():
    network = tiny()
    network.unused = nn.Linear(2, 2)
    assert "unused" not in curvature_root(network, [(X, Y)], (*LAYERS, "unused"))


@pytest.mark.parametrize("mean_restored", [True, False])
@pytest.mark.parametrize("layer", ["conv", "grouped", "head"])
def test_the_rise_by_new_weights_is_that_of_a_loop_over_images_and_positions(layer, mean_restored):
    network = tiny()
    module = network.get_submodule(layer)
    statistics = collect_statistics(network, [X], [layer], positions=10_000)
    moments = prepare_reconstruction(network, statistics)[layer]
    generator = torch.Generator().manual_seed(0)
    changed = copy.deepcopy(module)
    changed.weight.data += 0.1 * torch.randn(module.weight.shape, generator=generator)
    seen = []
    handle = module.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0]))
    root = curvature_root(network, [(X, Y)], [layer])[layer]
    handle.remove()
    with torch.no_grad():
        change = torch.cat([rows_of(module, changed(x) - module(x)) for x in seen])
    if mean_restored:
        change = change - change.mean(0)
    gradients = shift_gradients(network, layer)
    if layer == "grouped":  # outputs of different groups count as independent
        halves = zip(gradients.chunk(2, 1), change.chunk(2, 1), strict=True)
        expected = sum(slow_rise(*half) for half in halves)
    else:
        expected = slow_rise(gradients, change)
        of_covariance = rise_from_covariance(root, change.T @ change / len(change))
        assert of_covariance == pytest.approx(expected, rel=1e-4)
    found = rise_from_weights(root, moments, changed.weight.detach(), mean_restored=mean_restored)
    assert found == pytest.approx(expected, rel=1e-3)


def test_the_score_of_a_linear_model_is_the_true_rise_of_its_loss():
    """Where gradients are independent of inputs, and labels come from the model itself."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 3))
    network[0].weight.data.zero_()
    network[0].bias.data = torch.tensor([0.5, 0.0, -1.0])
    x = torch.randn(20_000, 6, generator=generator)
    chances = network(x[:1]).softmax(1)[0].detach()
    y = torch.multinomial(chances, len(x), replacement=True, generator=generator)
    statistics = collect_statistics(network, [x], ["0"])
    moments = prepare_reconstruction(network, statistics)["0"]
    root = curvature_root(network, [(x, y)], ["0"])["0"]
    change = 0.15 * torch.randn(3, 6, generator=generator)
    changed = copy.deepcopy(network)
    changed[0].weight.data += change
    with torch.no_grad():
        # The first-order term is noise of the labels: its expectation is 0.
        first = (network(x).softmax(1) - F.one_hot(y, 3)).T @ x / len(x)
        rise = F.cross_entropy(changed(x), y) - F.cross_entropy(network(x), y)
        rise = float(rise - (first * change).sum())
    score = rise_from_weights(root, moments, network[0].weight.detach() + change)
    assert score == pytest.approx(rise, rel=0.05)


def test_the_fisher_information_of_weights_is_that_of_a_loop_over_small_batches():
    network = tiny()
    before = copy.deepcopy(network.state_dict())
    found = weight_fisher(network, [(X[:20], Y[:20]), (X[20:], Y[20:])], ["twice.weight"])
    expected = torch.zeros_like(network.twice.weight, dtype=torch.float64)
    sizes = (8, 8, 4, *[8] * 9, 4)
    for x, y in zip(X.split(sizes), Y.split(sizes), strict=True):
        loss = sum(F.cross_entropy(network(a[None]), b[None]) for a, b in zip(x, y, strict=True))
        expected += torch.autograd.grad(loss, network.twice.weight)[0].double().square() / len(X)
    torch.testing.assert_close(found["twice.weight"], expected, rtol=1e-4, atol=1e-10)
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_curves_are_raised_where_a_later_choice_is_worse():
    curve = falling(np.array([3.0, 1.0, 2.0, 0.5, 0.0]))
    assert curve.tolist() == [3.0, 2.0, 2.0, 0.5, 0.0]
