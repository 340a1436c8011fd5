"""Quantizers of layers with a mask: fitted to the weights that count, blind to the others."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from support.once import copies
from torch import nn

from amc_compress.learners import CodebookQuantization, UniformQuantization
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import sparse_layer
from amc_compress.learners.layers.structure import quantize_layer
from amc_compress.learners.quantization import CodebookQuantizer, quantized_layers
from amc_compress.learners.quantization.codebook.learner import set_mode
from amc_compress.learners.quantization.curves import layer_errors
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_env import Decision, DecisionKind

LEARNERS = {"codebook": CodebookQuantization, "uniform": UniformQuantization}


def weights(shape=(6, 5, 3, 3), seed=0, density=0.3):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=generator)
    return weight, torch.rand(shape, generator=generator) < density


def sparsified(name="residual", density=0.3):
    """A network of which the smallest weights of every layer do not count."""
    model = make_model(name).eval()
    for layer_name, layer in list(model.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = layer.weight.detach().abs()
            mask = size >= size.flatten().quantile(1 - density)
            parent, _, last = layer_name.rpartition(".")
            setattr(model.get_submodule(parent), last, sparse_layer(layer, mask))
    return model


@copies
def prepared(kind, name="residual", **options):
    """A learner of the dense network."""
    options = {"precision": "fp32", "proxy": "none", **options}
    model = make_model(name)
    return LEARNERS[kind](model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)


@pytest.mark.parametrize("bits", [2, 3])
def test_centroids_are_those_of_the_weights_that_count(bits):
    weight, mask = weights()
    found = CodebookQuantizer.fit(weight, bits, mask=mask)
    alone = CodebookQuantizer.fit(weight[mask], bits)
    assert torch.equal(found.codebook, alone.codebook)
    numbers = weight[mask].numpy().reshape(-1, 1)
    inertia = KMeans(2**bits, n_init=20, random_state=0).fit(numbers).inertia_
    error = float((found(weight) - weight)[mask].detach().square().sum())
    assert error <= inertia * 1.02


def test_channel_sizes_are_those_of_the_weights_that_count():
    weight, mask = weights()
    mask[2] = False  # a channel of which nothing is left
    found = CodebookQuantizer.fit(weight, 3, mask=mask, channel_scales=True)
    for channel in range(6):
        kept = weight[channel][mask[channel]]
        expected = float(kept.square().mean().sqrt()) if kept.numel() else 1.0
        assert float(found.scale[channel]) == pytest.approx(expected, rel=1e-6)
    kept = torch.cat([(w / s)[m] for w, m, s in zip(weight, mask, found.scale, strict=True)])
    assert torch.equal(found.codebook, CodebookQuantizer.fit(kept, 3).codebook)


@pytest.mark.parametrize("granularity", ["channel", "split"])
def test_every_bucket_has_centroids_of_its_own_weights(granularity):
    weight, mask = weights()
    mask.view(-1)[:60] = False  # the first bucket of either kind is empty
    options = {"granularity": granularity, "bucket_size": 50}
    found = CodebookQuantizer.fit(weight, 2, mask=mask, **options)
    pieces = (
        zip(weight, mask, strict=True)
        if granularity == "channel"
        else zip(weight.view(-1).split(50), mask.view(-1).split(50), strict=True)
    )
    for row, (piece, kept) in zip(found.codebook, pieces, strict=True):
        if kept.any():
            assert torch.equal(row, CodebookQuantizer.fit(piece[kept], 2).codebook[0])
        else:
            assert not row.any()


def test_a_mask_of_everything_is_no_mask_and_one_of_nothing_gives_zeros():
    weight, _ = weights()
    for options in ({}, {"channel_scales": True}, {"granularity": "channel"}):
        plain = CodebookQuantizer.fit(weight, 4, **options)
        full = CodebookQuantizer.fit(weight, 4, mask=torch.ones_like(weight).bool(), **options)
        assert torch.equal(plain.codebook, full.codebook)
        empty = CodebookQuantizer.fit(weight, 4, mask=torch.zeros_like(weight).bool(), **options)
        assert not empty.codebook.any()
        assert empty(weight).isfinite().all()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", ["minmax", "percentile", "mse", "kl", "lsq"])
def test_ranges_are_those_of_the_weights_that_count(rule, symmetric):
    weight, mask = weights((1, 40, 3, 3))
    weight = weight + 0.5
    weight[~mask] *= 10.0  # what stays behind the mask must not be seen
    options = {"symmetric": symmetric, "granularity": "tensor", "bucket_size": 256}
    found = weight_scales(weight, 4, rule, mask=mask, **options)
    alone = weight_scales(weight[mask], 4, rule, **options)
    for a, b in zip(found, alone, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=0)


@pytest.mark.parametrize("granularity", ["channel", "split"])
def test_percentiles_of_channels_and_buckets_leave_zeros_out(granularity):
    weight, mask = weights()
    mask[0] = False
    options = {"symmetric": True, "bucket_size": 45}
    scale, _ = weight_scales(weight, 4, "percentile", mask=mask, granularity=granularity, **options)
    for channel in range(1, 6):  # a bucket is a channel
        kept = weight[channel][mask[channel]].abs().numpy()
        assert float(scale[channel]) == pytest.approx(np.percentile(kept, 99.99) / 7, rel=1e-5)
    assert scale[0] == 1.0


def slow_gradient(layer, x, upstream):
    """Centroids' gradient by a loop over weights that count (Han et al. 2016, Eq. 3)."""
    weight = layer.quantized_weight().detach().requires_grad_()
    out = layer._conv_forward(x, weight, layer.bias)
    (by_weight,) = torch.autograd.grad(out, weight, upstream)
    quantizer = layer.weight_quantizer
    codes = quantizer.encode(layer.weight.detach())
    total = torch.zeros_like(quantizer.codebook)
    for index in layer.weight_mask.nonzero().tolist():
        i = tuple(index)
        scale = 1.0 if quantizer.scale is None else quantizer.scale[i[0]]
        total[0, int(codes[i])] += by_weight[i] * scale
    return total


@pytest.mark.parametrize("mode", ["both", "clusters"])
def test_gradients_of_centroids_come_from_the_weights_that_count(mode):
    weight, mask = weights()
    conv = nn.Conv2d(5, 6, 3)
    conv.weight = nn.Parameter(weight)
    quantizer = CodebookQuantizer.fit(weight, 2, mask=mask, channel_scales=True)
    layer = quantize_layer(sparse_layer(conv, mask), quantizer, None)
    set_mode(layer, mode)
    x, upstream = torch.randn(2, 5, 4, 4), torch.randn(2, 6, 2, 2)
    layer(x).backward(upstream)
    expected = slow_gradient(layer, x, upstream)
    torch.testing.assert_close(quantizer.codebook.grad, expected, atol=1e-4, rtol=1e-4)
    if mode == "both":
        assert not layer.weight.grad[~mask].any()
        assert layer.weight.grad[mask].any()


def test_learned_steps_count_the_weights_that_count():
    learner = prepared("uniform", "plain", learned_steps=True, granularity="tensor")
    network = learner.quantize(sparsified("plain"), learner.fixed_plan(4))
    layer = quantized_layers(network)["3"]
    assert layer.weight_quantizer.numbers == int(layer.weight_mask.sum())


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_sparse_network_is_quantized_and_trained_with_its_zeros(kind):
    model = sparsified()
    hidden = copy.deepcopy(model)
    for layer in hidden.modules():
        if hasattr(layer, "weight_mask"):
            with torch.no_grad():  # other values behind the masks
                layer.weight[~layer.weight_mask] = 7.0
    images = make_data(32, 4)[0][0]
    outputs = []
    for network in (model, hidden):
        learner = prepared(kind, proxy="recalibration")
        quantized = learner.quantize(network, learner.fixed_plan(3))
        with torch.no_grad():
            outputs.append(quantized(images))
            torch.testing.assert_close(
                finalise(quantized, quantized=True)(images), outputs[-1], rtol=0, atol=0
            )
    assert torch.equal(*outputs)
    for mode in ("both", "clusters") if kind == "codebook" else ("",):
        if mode:
            set_mode(quantized, mode)
        masks = {n: layer.weight_mask.clone() for n, layer in quantized_layers(quantized).items()}
        assert set(masks) == set(learner.layers)
        learner.finetune(quantized, make_data(256, 1), epochs=1)
        for name, layer in quantized_layers(quantized).items():
            weight = layer.quantized_weight().detach()
            assert torch.equal(layer.weight_mask, masks[name])
            assert not weight[~masks[name]].any()
            if kind == "codebook":
                assert weight[0].unique().numel() <= 2**layer.weight_quantizer.bits + 1


def test_error_curves_compare_with_the_sparse_layer():
    model = sparsified("plain", density=0.2)
    x = torch.cat([images for images, _ in make_data(96, 2)])[:32]
    layer = model[0]
    quantizer = CodebookQuantizer.fit(layer.weight, 2, mask=layer.weight_mask)
    decision = Decision("0", DecisionKind.WEIGHT_BITS, (2.0, 16.0), layer.weight.numel())
    curves = layer_errors(model, x, [decision], {decision.key: [quantizer, None]})
    with torch.no_grad():
        out = layer(x)
        weight = quantizer(layer.weight) * layer.weight_mask
        found = layer._conv_forward(x, weight, layer.bias)
    centred = [t - t.mean((0, 2, 3), keepdim=True) for t in (out, found - out)]
    expected = float(centred[1].square().sum() / centred[0].square().sum())
    assert curves["0:weight_bits"][0] == pytest.approx(expected, rel=1e-4)


def test_the_evaluator_sees_the_sparse_quantized_network():
    learner = prepared("codebook")
    network = learner.quantize(sparsified(), learner.fixed_plan(4))
    images, labels = (torch.cat(t) for t in zip(*make_data(200, 3), strict=True))
    with torch.no_grad():
        right = (network(images).argmax(1) == labels).float().mean()
    assert learner.evaluator.score(network) == pytest.approx(float(right), abs=0.006)


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_learner_is_prepared_for_the_dense_network(kind):
    with pytest.raises(ValueError, match=r"without masks.*'stem'.*quantize\(network, plan\)"):
        LEARNERS[kind](sparsified(), EXAMPLE, make_data(96, 2), make_data(200, 3))
