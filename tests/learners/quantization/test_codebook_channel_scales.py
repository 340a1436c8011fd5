"""One codebook for a layer, with a factor for every channel."""

from __future__ import annotations

import copy

import pytest
import torch

from amc_compress.learners.quantization import (
    CodebookQuantization,
    CodebookQuantizer,
    load_packed,
    save_packed,
)
from amc_compress.learners.testing.networks import make_data, make_model
from amc_env import CompressionEnv


def weights() -> torch.Tensor:
    """Channels whose sizes span three orders of magnitude."""
    generator = torch.Generator().manual_seed(0)
    sizes = torch.logspace(-2, 1, 8).view(-1, 1, 1, 1)
    return torch.randn(8, 6, 3, 3, generator=generator) * sizes


def relative_errors(quantizer: CodebookQuantizer, weight: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        lost = (quantizer(weight) - weight).flatten(1).norm(dim=1)
    return lost / weight.flatten(1).norm(dim=1)


def test_small_channels_are_followed_as_well_as_large_ones():
    weight = weights()
    shared = relative_errors(CodebookQuantizer.fit(weight, 2), weight)
    scaled = relative_errors(CodebookQuantizer.fit(weight, 2, channel_scales=True), weight)
    assert shared[0] > 0.9  # all of the smallest channel is lost in one centroid
    assert scaled.max() < 0.5


@pytest.mark.parametrize("bits", [2, 5, 8])
def test_codes_mean_what_forward_gives_bit_for_bit(bits):
    weight = weights()
    quantizer = CodebookQuantizer.fit(weight, bits, channel_scales=True)
    quantizer.rescale(torch.linspace(0.5, 1.5, 8))
    codes = quantizer.encode(weight)
    values = quantizer.decode(codes)
    assert torch.equal(values, quantizer(weight).detach())
    assert torch.equal(quantizer.encode(values), codes)


def test_values_are_the_nearest_of_a_slow_search():
    weight = weights()
    quantizer = CodebookQuantizer.fit(weight, 3, channel_scales=True)
    for channel, scale, got in zip(weight, quantizer.scale, quantizer(weight), strict=True):
        candidates = quantizer.codebook.detach()[0] * scale
        nearest = (channel.reshape(-1, 1) - candidates).abs().min(1).values
        torch.testing.assert_close((got - channel).abs().reshape(-1), nearest)


def test_the_gradient_of_a_centroid_is_the_scaled_sum_of_its_weights():
    weight = weights().requires_grad_()
    quantizer = CodebookQuantizer.fit(weight, 2, channel_scales=True)
    upstream = torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
    (quantizer(weight) * upstream).sum().backward()
    codes = quantizer.encode(weight.detach())
    scaled = upstream * quantizer.scale.view(-1, 1, 1, 1)
    expected = [scaled[codes == k].sum() for k in range(4)]
    torch.testing.assert_close(quantizer.codebook.grad[0], torch.stack(expected))
    torch.testing.assert_close(weight.grad, upstream)


def test_rescaling_multiplies_the_values_of_each_channel():
    weight = weights()
    quantizer = CodebookQuantizer.fit(weight, 4, channel_scales=True)
    codes, factor = quantizer.encode(weight), torch.linspace(0.5, 2.0, 8)
    before = quantizer.decode(codes)
    assert quantizer.rescale(factor)
    torch.testing.assert_close(quantizer.decode(codes), before * factor.view(-1, 1, 1, 1))


def test_channels_of_zeros_stay_zero():
    weight = weights()
    weight[3] = 0
    quantizer = CodebookQuantizer.fit(weight, 8, channel_scales=True)
    assert quantizer.scale[3] == 1
    assert quantizer(weight)[3].abs().max() < 0.1


@pytest.mark.parametrize("name", ["plain", "residual", "depthwise"])
def test_a_packed_network_keeps_scales_and_costs_what_was_said(name, tmp_path):
    original = make_model(name)
    data = make_data(256, 2)
    learner = CodebookQuantization(
        original, torch.zeros(1, 3, 8, 8), data, make_data(128, 3), n_calibration=64
    )
    plan = learner.fixed_plan(3)
    network = learner.compress(plan)
    size = save_packed(network, tmp_path / "network.packed", plan=plan)
    loaded = load_packed(tmp_path / "network.packed", copy.deepcopy(original))
    images = data[0][0]
    with torch.no_grad():
        assert torch.equal(loaded(images), network(images))
    env = CompressionEnv(learner, "bytes=1.0")
    predicted = env.costs["bytes"](plan.values_for(env.decisions))
    # Tiny networks: the header is most of the file, and compresses a little differently each time.
    assert abs(predicted - size) <= 0.03 * size + 40
