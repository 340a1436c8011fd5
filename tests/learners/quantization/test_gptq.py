"""GPTQ as an option of uniform quantization: every kind of layer, files, zeros, levels."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.candidates.reconstruction import prepare_reconstruction
from amc_compress.learners.layers.masked import mask_of, masked_layers, sparse_layer
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import replace_module
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.quantization import UniformQuantization
from amc_compress.learners.quantization.uniform.gptq import Rounding, weight_of
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.sparsification import Pattern
from amc_compress.learners.testing.networks import EXAMPLE, Residual, make_data
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan

LAYERS = {
    "linear": (lambda: nn.Linear(20, 7), (300, 20), 0),
    "no bias": (lambda: nn.Conv2d(6, 5, 3, bias=False), (20, 6, 7, 7), 0),
    "grouped": (lambda: nn.Conv2d(6, 4, 3, groups=2), (20, 6, 7, 7), 0),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (20, 6, 7, 7), 0),
    "transposed": (lambda: nn.ConvTranspose2d(6, 4, 2, stride=2), (20, 6, 5, 5), 1),
    "grouped transposed": (
        lambda: nn.ConvTranspose2d(6, 4, 2, stride=2, groups=2), (20, 6, 5, 5), 1,
    ),
}  # fmt: skip
FORMS = {
    "channel": {"symmetric": True, "granularity": "channel", "bucket_size": 256},
    "groups": {"symmetric": False, "granularity": "group", "bucket_size": 8},
    "tensor": {"symmetric": False, "granularity": "tensor", "bucket_size": 256},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", LAYERS)
def test_outputs_lose_less_than_by_nearest_values_on_the_same_kind_of_grid(name, form):
    build, shape, axis = LAYERS[name]
    torch.manual_seed(0)
    layer = build()
    x = torch.randn(shape) + 0.5
    x += 0.8 * x.roll(1, 1)
    x += 0.8 * x.roll(1, -1)
    moments = collect_statistics(layer, [x], [""], positions=10**6)
    known = prepare_reconstruction(layer, moments)[""]
    weight, shared = layer.weight.detach(), {**FORMS[form], "axis": axis}
    nearest = UniformQuantizer(3, *weight_scales(weight, 3, "minmax", **shared), **shared)
    for act_order in (False, True):
        level = Rounding("minmax", act_order).solve(known, nearest)
        found = weight_of(level, nearest)
        assert ("bias" in level) == (layer.bias is not None)
        rounded = copy.deepcopy(layer)
        rounded.weight.data = nearest(weight)
        repaired = copy.deepcopy(layer)
        repaired.weight.data = found
        with torch.no_grad():
            if layer.bias is not None:  # both get their best bias
                off = layer(x) - rounded(x)
                rounded.bias += off.mean([d for d in range(off.dim()) if d != 1])
                repaired.bias.copy_(level["bias"])
            lost, kept = ((layer(x) - y(x)).square().sum() for y in (rounded, repaired))
        assert kept < lost, (act_order, float(kept / lost))
        if form != "groups" or act_order:  # the same grid
            assert torch.equal(level["scale"], nearest.scale)


def test_scales_of_least_squared_error_are_those_of_the_outputs():
    torch.manual_seed(0)
    layer, scales = nn.Linear(24, 7), torch.logspace(-1, 1, 24)
    x = torch.randn(400, 24) * scales  # uncorrelated, of sizes from 0.1 to 10
    moments = collect_statistics(layer, [x], [""], positions=10**6)
    known = prepare_reconstruction(layer, moments)[""]
    weight = layer.weight.detach()
    shared: dict = {"symmetric": True, "granularity": "channel", "bucket_size": 256}
    nearest = UniformQuantizer(3, *weight_scales(weight, 3, "mse", **shared), **shared)
    level = Rounding("mse").solve(known, nearest)
    tried = [weight.abs().amax(1) / 3 * share for share in (*torch.linspace(0.2, 1, 65), 0.19)]
    lost = [
        ((weight - UniformQuantizer(3, step, **shared)(weight)).square() * scales**2).sum(1)
        for step in tried
    ]
    best = torch.stack(tried)[torch.stack(lost).argmin(0), torch.arange(7)]
    near = (level["scale"] / best - 1).abs() < 0.05  # the moments are those of a sample
    assert near.sum() >= 6
    assert (level["scale"] / nearest.scale - 1).abs().max() > 0.15


def prepared(**options) -> UniformQuantization:
    train, validation = make_data(96, 0), make_data(64, 1)
    torch.manual_seed(0)
    bits = {"weight_bits": (3, 4), "activation_bits": 16, "first_last_bits": None}
    given = {**bits, "seed": 0, **options}
    return UniformQuantization(Residual().eval(), EXAMPLE, train, validation, **given)


def test_a_plan_is_put_together_from_layers_that_are_solved_once(tmp_path):
    learner = prepared(rounding="gptq", granularity="group", group_size=16, symmetric=False)
    plan = learner.fixed_plan(3)
    network = learner.compress(plan)
    solved = dict(learner.levels._held)
    assert {bits for _, bits in solved} == {3}
    learner.compress(plan)
    learner.evaluate(plan)
    assert all(learner.levels._held[key] is level for key, level in solved.items())
    plain = prepared(granularity="group", group_size=16, symmetric=False)
    errors, before = learner.layer_errors(), plain.layer_errors()
    assert sum(x[0] for x in errors.values()) < 0.9 * sum(x[0] for x in before.values())
    assert any(
        not torch.equal(a, b)
        for a, b in zip(network.parameters(), plain.compress(plan).parameters(), strict=True)
    )
    size = save_packed(network, tmp_path / "net.packed", plan=plan)
    loaded = load_packed(tmp_path / "net.packed", learner.original)
    with torch.no_grad():
        assert torch.equal(loaded(EXAMPLE), network(EXAMPLE))
    predicted = learner.cost_models["bytes"](plan.values_for(learner.decisions))
    assert abs(predicted / size - 1) < 0.03
    again = pickle.loads(pickle.dumps(learner))
    assert not again.levels._held
    assert same(again.compress(plan), network)


@pytest.mark.parametrize(("scale_type", "symmetric"), [("float16", True), ("bfloat16", False)])
def test_scales_are_of_the_type_that_the_file_and_the_costs_count(scale_type, symmetric, tmp_path):
    groups = {"granularity": "group", "group_size": 16, "symmetric": symmetric}
    sizes = []
    for kind in (scale_type, "float32"):
        learner = prepared(rounding="gptq", scale_type=kind, **groups)
        plan = learner.fixed_plan(3)
        network = learner.compress(plan)
        scales = [x.weight_quantizer.scale for x in quantized_layers(network).values()]
        assert all(torch.equal(x.to(getattr(torch, kind)).float(), x) for x in scales)
        sizes.append(save_packed(network, tmp_path / kind, plan=plan))
        predicted = learner.cost_models["bytes"](plan.values_for(learner.decisions))
        assert abs(predicted - sizes[-1]) < 64
        loaded = load_packed(tmp_path / kind, learner.original)
        with torch.no_grad():
            assert torch.equal(loaded(EXAMPLE), network(EXAMPLE))
    assert abs(sizes[1] - sizes[0] - 2 * sum(map(len, scales))) < 64  # the headers


def test_scales_of_groups_are_short_unless_they_are_learned():
    def of(**options) -> str:
        return UniformQuantization.Options(**options).scales_are

    assert of() == "float32"
    assert of(granularity="group") == "float16"
    assert of(granularity="group", learned_steps=True) == "float32"
    with pytest.raises(ValueError, match="learned_steps"):
        of(scale_type="float16", learned_steps=True)
    with pytest.raises(InputDataError, match=r"a scale of 1e\+06; store scales as float32"):
        UniformQuantizer(4, torch.tensor([1e6]), scale_type="float16")
    smallest = UniformQuantizer(4, torch.tensor([0.0]), scale_type="float16").scale
    assert 0.0 < float(smallest) == float(smallest.half())


def same(one: nn.Module, other: nn.Module) -> bool:
    states = one.state_dict(), other.state_dict()
    return all(torch.equal(x, y) for x, y in zip(*(s.values() for s in states), strict=True))


def test_weights_behind_masks_stay_zero_with_moments_of_the_sparse_network():
    learner = prepared(rounding="gptq", weight_bits=3)
    sparse = copy.deepcopy(learner.original)
    for name in ("conv1", "conv2"):
        layer = sparse.get_submodule(name)
        mask = Pattern.parse("unstructured").mask(layer.weight, layer.weight.numel() // 2)
        replace_module(sparse, name, sparse_layer(layer, mask))
    network = learner.quantize(sparse, CompressionPlan({}))
    assert not learner.levels._held  # they are the original's
    layers = quantized_layers(network)
    assert masked_layers(network)
    for layer in layers.values():
        mask = mask_of(layer)
        if mask is not None:
            assert not layer.quantized_weight()[~mask].any()
            on_grid = layer.weight_quantizer(layer.weight) * mask
            torch.testing.assert_close(on_grid, layer.weight, rtol=1e-5, atol=1e-7)


def test_layers_without_moments_of_their_own_are_rounded_to_the_nearest_value_and_named():
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.relu(self.second(torch.relu(self.first(x)))))

    torch.manual_seed(0)
    data = [(torch.randn(64, 8), torch.randint(8, (64,)))]
    learner = UniformQuantization(
        Tied().eval(), torch.zeros(1, 8), data, data, rounding="gptq", first_last_bits=None
    )
    assert any("nearest" in note and "first" in note for note in learner.notes)
    assert "last" in learner._layers
    learner.compress(learner.fixed_plan(3))
