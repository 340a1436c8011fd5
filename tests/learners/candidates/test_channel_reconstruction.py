"""Reconstruction against a dense least-squares solve on the very same patches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_compress.learners.candidates.input_moments import (
    InputStatistics,
    collect_statistics,
    sample_rows,
)
from amc_compress.learners.candidates.reconstruction import LayerReconstruction
from amc_compress.learners.layers.products import Use, watching

torch.manual_seed(0)  # the layers below

CONVOLUTIONS = {
    "3x3": nn.Conv2d(6, 5, 3, padding=1, bias=False),
    "strided": nn.Conv2d(6, 5, 3, stride=2, padding=1, bias=False),
    "dilated": nn.Conv2d(6, 5, 3, padding=2, dilation=2, bias=False),
    "bias": nn.Conv2d(6, 5, 3, padding=1),
    "grouped": nn.Conv2d(8, 6, 3, padding=1, groups=2, bias=False),
    "grouped with bias": nn.Conv2d(8, 6, 3, padding=1, groups=2),
    "rectangular": nn.Conv2d(6, 5, (1, 3), stride=(2, 1), padding=(0, 2), bias=False),
    "same padding": nn.Conv2d(6, 5, 5, padding="same"),
    "reflect padding": nn.Conv2d(6, 5, 3, padding=1, padding_mode="reflect"),
    "1x1": nn.Conv2d(6, 5, 1, bias=False),
    "1-d": nn.Conv1d(6, 5, 3, padding=1),
    "3-d": nn.Conv3d(4, 3, (3, 2, 1), stride=(1, 2, 1), padding=(1, 0, 0), bias=False),
}


def images_for(conv: nn.Module, n: int = 40) -> torch.Tensor:
    size = {nn.Conv1d: (9,), nn.Conv2d: (7, 8), nn.Conv3d: (4, 5, 3)}[type(conv)]
    generator = torch.Generator().manual_seed(3)
    return torch.randn(n, conv.in_channels, *size, generator=generator) + 0.3


def sampled(layer: nn.Module, inputs: torch.Tensor, positions: int) -> torch.Tensor:
    uses: list[Use] = []
    with watching({layer: uses.append}), torch.no_grad():
        layer(inputs)
    (use,) = uses
    return sample_rows(use.product, positions, torch.Generator().manual_seed(0))


def all_patches(conv: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Patches by applying one-hot kernels: shares nothing with the code under test."""
    width = conv.weight[0].numel()
    groups = []
    for g in range(conv.groups):
        probe = type(conv)(
            conv.in_channels // conv.groups,
            width,
            conv.kernel_size,
            conv.stride,
            conv.padding,
            conv.dilation,
            bias=False,
            padding_mode=conv.padding_mode,
        )
        probe.weight.data = torch.eye(width).reshape(width, *conv.weight.shape[1:])
        part = images.chunk(conv.groups, 1)[g]
        groups.append(probe(part).detach().flatten(2).transpose(1, 2).reshape(-1, width))
    return torch.stack(groups)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_patches_at_all_positions_are_the_unfolded_input(name):
    conv = CONVOLUTIONS[name]
    images = images_for(conv, 5)
    assert torch.equal(sampled(conv, images, 10**6), all_patches(conv, images))


def test_sampled_patches_times_the_weight_are_outputs_of_the_convolution():
    conv = CONVOLUTIONS["strided"]
    images = images_for(conv, 4)
    rows = sampled(conv, images, 3)[0]
    assert rows.shape == (12, 54)
    outputs = conv(images).detach().flatten(2).transpose(1, 2)
    for index, row in enumerate(rows @ conv.weight.detach().flatten(1).T):
        distance = (outputs[index // 3] - row).abs().amax(1)
        assert distance.min() < 1e-5


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_reconstruction_equals_dense_least_squares(name):
    conv = CONVOLUTIONS[name]
    images = images_for(conv)
    # Correlated inputs, or there would be nothing to reconstruct.
    images[:, 1] = images[:, 0] * 0.7 + 0.5 * images[:, 1] + 0.2
    statistics = collect_statistics(conv, [images[:16], images[16:]], [""], positions=10**6)
    layer = LayerReconstruction(conv.weight, conv.bias, statistics[""], ridge=1e-12)
    inputs = torch.tensor([0, 2, 3])
    outputs = torch.tensor([0, 2]) if conv.groups == 1 else torch.tensor([1, 2, 4])
    weight, bias = layer.solve(inputs, outputs)

    kernel = conv.weight[0, 0].numel()
    columns = (inputs[:, None] * kernel + torch.arange(kernel)).flatten()
    per_group = conv.out_channels // conv.groups
    expected, shifts = [], []
    for o in outputs.tolist():
        rows = all_patches(conv, images)[o // per_group].double()
        y = rows @ conv.weight[o].detach().double().flatten()
        design = rows[:, columns]
        if conv.bias is not None:
            y = y + conv.bias[o].item()
            design = torch.cat([design, torch.ones(len(design), 1)], 1)
        solution = np.linalg.lstsq(design.numpy(), y.numpy(), rcond=None)[0]
        expected.append(solution[: len(columns)])
        shifts.append(solution[-1])
    np.testing.assert_allclose(weight.flatten(1).numpy(), np.array(expected), atol=2e-5)
    assert (bias is None) == (conv.bias is None)
    if bias is not None:
        np.testing.assert_allclose(bias.numpy(), shifts, atol=2e-5)


def test_linear_layer_on_tokens_equals_dense_least_squares():
    layer = nn.Linear(6, 4)
    generator = torch.Generator().manual_seed(1)
    tokens = torch.randn(30, 5, 6, generator=generator)
    tokens[..., 1] += tokens[..., 0]
    statistics = collect_statistics(layer, [tokens], [""], positions=10)[""]
    assert statistics.rows == 150
    weight, bias = LayerReconstruction(layer.weight, layer.bias, statistics, 1e-12).solve(
        torch.tensor([0, 2, 4])
    )
    x = tokens.reshape(-1, 6)
    design = np.concatenate([x[:, [0, 2, 4]].numpy(), np.ones((150, 1))], 1)
    expected = np.linalg.lstsq(design, layer(x).detach().numpy(), rcond=None)[0]
    np.testing.assert_allclose(weight.numpy(), expected[:3].T, atol=1e-5)
    np.testing.assert_allclose(bias.numpy(), expected[3], atol=1e-5)


def test_relative_error_is_the_one_of_the_repaired_layer():
    conv = CONVOLUTIONS["3x3"]
    images = images_for(conv)
    statistics = collect_statistics(conv, [images], [""], positions=10**6)[""]
    layer = LayerReconstruction(conv.weight, None, statistics)
    inputs = torch.tensor([1, 3, 4, 5])
    weight, _ = layer.solve(inputs)
    y = conv(images).detach()
    repaired = F.conv2d(images[:, inputs], weight, padding=1)
    expected = ((y - repaired).square().sum() / y.square().sum()).item()
    assert layer.relative_error(inputs) == pytest.approx(expected, rel=1e-4)
    assert layer.relative_error(torch.arange(6)) == pytest.approx(0.0, abs=1e-8)


def test_reconstruction_is_never_worse_than_the_sliced_weights():
    conv = CONVOLUTIONS["dilated"]
    images = images_for(conv)
    images[:, 2] = images[:, 1] + 0.1 * images[:, 2]
    layer = LayerReconstruction(
        conv.weight, None, collect_statistics(conv, [images], [""], positions=10**6)[""]
    )
    y = conv(images).detach()
    for drop in range(6):
        inputs = torch.tensor([i for i in range(6) if i != drop])
        sliced = F.conv2d(images[:, inputs], conv.weight[:, inputs], padding=2, dilation=2).detach()
        lost = ((y - sliced).square().sum() / y.square().sum()).item()
        assert layer.relative_error(inputs) <= lost + 1e-9


def test_dead_inputs_keep_their_original_weights():
    gram = torch.diag(torch.tensor([4.0, 0.0, 1.0], dtype=torch.float64)).unsqueeze(0)
    statistics = InputStatistics(gram, torch.zeros(1, 3, dtype=torch.float64), 10)
    weight = torch.tensor([[1.0, 2.0, 3.0]])
    solved, _ = LayerReconstruction(weight, None, statistics).solve(torch.tensor([0, 1]))
    torch.testing.assert_close(solved, torch.tensor([[1.0, 2.0]]))


def test_sampling_is_seeded_and_independent_of_other_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3), nn.Flatten(), nn.Linear(80, 2))
    images = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    first = collect_statistics(model, [images], ["0", "1", "3"], seed=5, positions=4)
    again = collect_statistics(model, [images], ["0", "1", "3"], seed=5, positions=4)
    other = collect_statistics(model, [images], ["0", "1", "3"], seed=6, positions=4)
    assert torch.equal(first["1"].gram, again["1"].gram)
    assert not torch.equal(first["1"].gram, other["1"].gram)
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_wide_layers_have_no_statistics():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 2))
    images = torch.randn(6, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    assert collect_statistics(model, [images], ["1"], max_columns=47) == {}
