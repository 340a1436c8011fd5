"""UniformQuantization keeps its own promises; the contract of learners is checked elsewhere."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from support.once import copies
from support.selection import quick
from torch import nn

from amc_compress.learners import UniformQuantization
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.following_norms import following_norms
from amc_compress.learners.quantization import describe, quantized_layers, rebuild
from amc_compress.learners.testing.networks import (
    EXAMPLE,
    NETWORKS,
    accuracy_of,
    make_data,
    make_model,
)
from amc_compress.learners.training.config import TrainingConfig
from amc_env import CompressionPlan
from amc_env.errors import InputDataError, PlanMismatchError, UntraceableModelError


@copies
def prepared(name="residual", **options):
    model = make_model(name).eval()
    options = {"precision": "fp32", **options}
    learner = UniformQuantization(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)
    return model, learner


IMAGES = make_data(64, 4)[0][0]


def test_decisions_go_by_depth_and_weights_come_first():
    _, learner = prepared(weight_bits=(2, 8), activation_bits=(4, 8))
    assert [d.key for d in learner.decisions] == [
        f"{layer}:{kind}"
        for layer in ("conv1", "conv2", "conv3")
        for kind in ("weight_bits", "activation_bits")
    ]
    assert {d.target: d.size for d in learner.decisions} == {
        "conv1": 16 * 16 * 9,
        "conv2": 16 * 16 * 9,
        "conv3": 32 * 16 * 9,
    }
    assert learner.storage.weight_bits == {"stem": 8, "head": 8}
    _, learner = prepared(weight_bits=(2, 8), activation_bits=16)
    layers = quantized_layers(learner.compress(learner.fixed_plan(2)))
    assert all(layer.input_quantizer is None for layer in layers.values())
    assert [layer.weight_quantizer.bits for layer in layers.values()] == [8, 2, 2, 2, 8]


def test_fixed_bits_leave_nothing_to_decide():
    _, learner = prepared(weight_bits=4, activation_bits=8)
    assert learner.decisions == ()
    plan = learner.fixed_plan(4)
    layers = quantized_layers(learner.compress(plan))
    assert [layer.weight_quantizer.bits for layer in layers.values()] == [8, 4, 4, 4, 8]
    assert 0.4 < learner.evaluate(plan) <= 1.0


def test_ignored_layers_stay_in_float():
    _, learner = prepared(ignore=("conv2",), first_last_bits=None)
    assert "conv2" not in {d.target for d in learner.decisions}
    network = learner.compress(learner.fixed_plan(2))
    assert set(quantized_layers(network)) == {"stem", "conv1", "conv3", "head"}
    assert type(network.conv2) is nn.Conv2d


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
@pytest.mark.parametrize("granularity", ["tensor", "channel", "split", "group"])
def test_the_baked_network_is_exactly_the_trainable_one(name, granularity):
    _, learner = prepared(
        name, granularity=granularity, bucket_size=50, activation_bits=(2, 8), symmetric=False
    )
    network = learner.compress(learner.fixed_plan(3, 8))
    plain = finalise(network, quantized=True)
    assert not quantized_layers(plain)
    with torch.no_grad():
        assert torch.equal(network(IMAGES), plain(IMAGES))
    again = rebuild(make_model(name), describe(network))
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(network(IMAGES), again(IMAGES))


def test_matching_restores_mean_and_deviation_of_every_output():
    model, learner = prepared(activation_bits=16)
    seen = {}

    def moments(network):
        found = {}

        def watch(name):
            def hook(_, __, y):
                y = y.detach()
                dims = (0, 2, 3) if y.dim() == 4 else (0,)
                found[name] = (y.mean(dims), y.std(dims))

            return hook

        handles = [network.get_submodule(n).register_forward_hook(watch(n)) for n in learner.layers]
        with torch.no_grad():
            network(learner._recalibration)
        for handle in handles:
            handle.remove()
        return found

    for recalibrate in (True, False):
        network = learner.quantize(model, learner.fixed_plan(2), recalibrate=recalibrate)
        seen[recalibrate] = moments(network)
    expected = moments(learner.float_network)
    differs = [
        float((seen[False][n][0] - expected[n][0]).abs().max()) for n in ("conv1", "conv2", "conv3")
    ]
    assert max(differs) > 0.05
    for layer, norm in following_norms(model).items():
        assert norm.startswith("bn")
        for part in (0, 1):
            torch.testing.assert_close(
                seen[True][layer][part], expected[layer][part], rtol=2e-2, atol=2e-3
            )


def test_matching_leaves_the_codes_as_they_are():
    model, learner = prepared()
    plan = learner.fixed_plan(3)
    matched = quantized_layers(learner.quantize(model, plan))
    plain = quantized_layers(learner.quantize(model, plan, recalibrate=False))
    for name, layer in plain.items():
        other = matched[name]
        codes = layer.weight_quantizer.encode(layer.weight)
        assert (codes != other.weight_quantizer.encode(other.weight)).float().mean() < 0.001


def test_a_sliced_network_is_quantized_by_its_own_ranges():
    model, learner = prepared()
    kept = {g.name: torch.arange(g.size // 2) for g in learner.graph.groups}
    sliced = learner.traced.slice(kept)
    before = copy.deepcopy(sliced.state_dict())
    network = learner.quantize(sliced, learner.fixed_plan(8))
    assert all(torch.equal(v, before[k]) for k, v in sliced.state_dict().items())
    layers = quantized_layers(network)
    for name in ("conv1", "conv2", "conv3"):
        assert layers[name].weight.shape[0] < model.get_submodule(name).weight.shape[0]
        assert layers[name].weight_quantizer.scale.numel() == layers[name].weight.shape[0]
    with torch.no_grad():
        expected, found = sliced.eval()(IMAGES), network(IMAGES)
    assert (found - expected).norm() < 0.1 * expected.norm()
    with pytest.raises(PlanMismatchError, match="Expected a float layer"):
        learner.quantize(network, learner.fixed_plan(8))


@pytest.mark.parametrize("symmetric", [True, False])
def test_bytes_are_those_of_the_packed_file(symmetric):
    from amc_compress.learners.packing.packed_file import packed_bytes

    _, learner = prepared(symmetric=symmetric, activation_bits=(4, 8))
    for bits in (2, 5, 8):
        plan = learner.fixed_plan(bits, 8)
        promised = learner.cost_models["bytes"](plan.values_for(learner.decisions))
        size = len(packed_bytes(learner.compress(plan), plan=plan))
        assert promised == pytest.approx(size, rel=0.03)


def test_errors_fall_with_bits_and_are_those_of_a_single_quantized_layer():
    _, learner = prepared(weight_bits=(2, 4, 8, 16), activation_bits=(2, 8))
    errors = learner.layer_errors()
    assert errors.keys() == {d.key for d in learner.decisions}
    for d in learner.decisions:
        curve = errors[d.key]
        assert curve.shape == (len(d.choices),)
        assert (np.diff(curve) < 0).all()
        assert 0 <= curve[-1] < 0.01 < curve[0] < 1
    layer = learner.float_network.get_submodule("conv1")
    inputs = []
    handle = layer.register_forward_hook(lambda _, x, __: inputs.append(x[0]))
    with torch.no_grad():
        learner.float_network(learner._recalibration[:32])
        handle.remove()
        quantizer = learner.fitted.weights("conv1", 4)
        exact = layer(inputs[0])
        layer_copy = copy.deepcopy(layer)
        layer_copy.weight.copy_(quantizer(layer.weight))
        off = layer_copy(inputs[0]) - exact
    energy = exact.var((0, 2, 3), correction=0).sum()
    expected = off.var((0, 2, 3), correction=0).sum() / energy
    assert errors["conv1:weight_bits"][1] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("learned", [False, True])
def test_training_repairs_few_bits(learned):
    _, learner = prepared(
        weight_bits=2, activation_bits=4, learned_steps=learned, weight_range="lsq"
    )
    network = learner.compress(learner.fixed_plan(2))
    scales = {n: x.weight_quantizer.scale.detach().clone() for n, x in _layers(network)}
    before = accuracy_of(network, make_data(200, 3))
    config = TrainingConfig(epochs=4, learning_rate=0.02, weight_decay=1e-4, precision="fp32")
    result = learner.finetune(network, make_data(512, 1), config=config)
    assert result.best_score >= max(before, 0.6)
    assert result.best_score == pytest.approx(accuracy_of(network, make_data(200, 3)))
    moved = [not torch.equal(x.weight_quantizer.scale, scales[n]) for n, x in _layers(network)]
    assert all(moved) if learned else not any(moved)


def _layers(network):
    return quantized_layers(network).items()


class Untraceable(nn.Module):
    """Its forward branches on data, which torch.fx cannot follow."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.bn(self.conv(x))
        if float(x.sum()) < -1e30:
            x = -x
        return self.head(self.second(x.relu()).relu().mean((2, 3)))


def test_what_cannot_be_traced_keeps_its_norms():
    torch.manual_seed(0)
    model = Untraceable().eval()
    options = {"weight_bits": (4, 8), "first_last_bits": None, "precision": "fp32"}
    learner = UniformQuantization(model, EXAMPLE, make_data(96, 2), make_data(64, 3), **options)
    assert learner.storage.folded == {}
    network = learner.compress(learner.fixed_plan(8))
    assert type(network.bn) is nn.BatchNorm2d
    assert set(quantized_layers(network)) == {"conv", "second", "head"}
    assert 0.0 <= learner.evaluate(learner.fixed_plan(4)) <= 1.0


def test_a_network_without_such_layers_is_rejected():
    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def forward(self, x):
            return x.mean((2, 3))[:, :1] + self.bias

    with pytest.raises(UntraceableModelError, match=r"a layer with weights that runs"):
        UniformQuantization(Shift(), EXAMPLE, make_data(32, 2), make_data(32, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight_bits": (1, 2)}, "Expected weight_bits from 2 to 8, or 16"),
        ({"weight_bits": ()}, "Expected weight_bits from 2 to 8, or 16"),
        ({"activation_bits": 9}, "Expected activation_bits from 2 to 8, or 16"),
        ({"first_last_bits": 12}, "Expected first_last_bits"),
        ({"granularity": "filter"}, "Unknown granularity 'filter'"),
        ({"activation_range": "max"}, "Unknown range rule 'max'"),
        ({"weight_range": "max"}, "Unknown range rule 'max'"),
        ({"proxy": "reconstruction"}, "Unknown proxy"),
        ({"precision": "fp8"}, "Unknown precision"),
        ({"finetune_steps": 2}, "Expected training batches"),
        ({"ignore": ("layer9",)}, "Expected layers to ignore"),
        ({"n_calibration": 0}, "n_calibration"),
    ],
)
def test_bad_options_are_rejected(options, message):
    with pytest.raises(ValueError, match=message):
        prepared(**options)


def test_constant_calibration_images_are_rejected():
    model = make_model("plain")
    constant = [(torch.full((16, 3, 8, 8), 0.5), torch.zeros(16, dtype=torch.int64))]
    with pytest.raises(InputDataError, match="calibration images that differ"):
        UniformQuantization(model, EXAMPLE, constant, make_data(64, 3))


def test_activations_that_overflow_are_rejected_by_name():
    model = make_model("plain")
    with torch.no_grad():
        model[0].weight.mul_(1e30)
        model[3].weight.mul_(1e30)
    with pytest.raises(InputDataError, match="inputs of layer '6'"):
        UniformQuantization(model, EXAMPLE, make_data(64, 2), make_data(64, 3))


def test_dead_channels_and_layers_are_quantized_to_zero():
    model = make_model("plain")
    with torch.no_grad():
        model[0].weight[2].zero_()
        model[3].weight.zero_()
        model[3].bias.zero_()
    learner = UniformQuantization(model, EXAMPLE, make_data(64, 2), make_data(64, 3))
    network = learner.compress(learner.fixed_plan(2))
    assert not network[3].quantized_weight().any()
    assert not network[0].quantized_weight()[2].any()
    with torch.no_grad():
        assert network(IMAGES).isfinite().all()


def test_bits_on_no_offer_are_rejected():
    _, learner = prepared(weight_bits=(2, 4))
    with pytest.raises(PlanMismatchError, match="not on the grid"):
        learner.fixed_plan(3)
    with pytest.raises(PlanMismatchError):
        learner.compress(CompressionPlan({"conv9:weight_bits": 4.0}))
