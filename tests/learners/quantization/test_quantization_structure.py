"""Folding, baking and rebuilding: what must not change a network's outputs."""

from __future__ import annotations

import json

import pytest
import torch
from support.networks.sparse_networks import sparsified
from torch import nn

from amc_compress.learners.layers.bit_layers import bit_layers
from amc_compress.learners.layers.finalise import finalise, without_identities
from amc_compress.learners.layers.masked import SparseConv2d, masked_layers, sparse_layer
from amc_compress.learners.layers.quantized import QuantizedConv2d
from amc_compress.learners.layers.structure import (
    foldable_norms,
    folded_copy,
    quantize_layers,
)
from amc_compress.learners.quantization import describe, fold_norms, quantized_layers, rebuild
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model
from amc_compress.learners.tracing.traced_model import trace
from amc_env.errors import InputDataError

IMAGES = make_data(16, 4)[0][0]


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_changes_nothing_but_rounding(name):
    model = make_model(name).eval()
    with torch.no_grad():
        expected = model(IMAGES)
        norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
        folded = fold_norms(model)
        found = model(IMAGES)
    assert set(folded) == set(norms)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    assert all(model.get_submodule(layer).bias is not None for layer in folded.values())
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    with torch.no_grad():
        stripped = without_identities(model)
        assert not any(type(m) is nn.Identity for m in _used(stripped))
        assert torch.equal(stripped(IMAGES), found)


def _used(traced):
    return [
        traced.get_submodule(str(n.target)) for n in traced.graph.nodes if n.op == "call_module"
    ]


def test_a_linear_layer_takes_its_norm_and_one_along_another_axis_does_not():
    class Tokens(nn.Module):
        def __init__(self, swapped: bool) -> None:
            super().__init__()
            self.linear = nn.Linear(6, 5, bias=False)
            self.norm = nn.BatchNorm1d(5)
            self.swapped = swapped

        def forward(self, x):
            return self.norm(self.linear(x)).flatten(1)

    generator = torch.Generator().manual_seed(0)
    for shape, folds in (((20, 6), True), ((20, 5, 6), False)):
        model = Tokens(not folds)
        with torch.no_grad():
            model.norm.running_mean.normal_(generator=generator)
            model.norm.running_var.uniform_(0.5, 2.0, generator=generator)
            model.norm.weight.uniform_(0.5, 2.0, generator=generator)
        x = torch.randn(*shape, generator=generator)
        folded, norms = folded_copy(model.eval(), x)
        assert norms == ({"norm": "linear"} if folds else {})
        with torch.no_grad():
            torch.testing.assert_close(folded(x), model(x), atol=1e-5, rtol=1e-4)


class Finding(nn.Module):
    """A body that can be traced, in arithmetic that cannot, with detections as answers."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Sequential(nn.Conv2d(3, 4, 3)), nn.BatchNorm2d(4), nn.ReLU())
        self.blocks = nn.ModuleList([nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))])
        self.again = self.stem  # one module by two names
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for module in self.modules():
                if isinstance(module, nn.Conv2d):
                    module.weight.normal_(generator=generator)
                elif isinstance(module, nn.BatchNorm2d):
                    module.running_mean.normal_(generator=generator)
                    module.running_var.uniform_(0.5, 2.0, generator=generator)

    def maps(self, images):
        maps = self.stem(images)
        for block in self.blocks:
            maps = maps + block(maps)
        return maps

    def forward(self, images):
        return [{"scores": x.flatten().sort(descending=True).values[:9]} for x in self.maps(images)]


def test_norms_fold_in_the_parts_of_a_network_that_is_not_traced_whole():
    model = Finding().eval()
    folded, norms = folded_copy(model, IMAGES)
    assert norms == {"stem.1": "stem.0.0", "blocks.0.1": "blocks.0.0"}
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    with torch.no_grad():
        torch.testing.assert_close(folded.maps(IMAGES), model.maps(IMAGES), atol=1e-5, rtol=1e-4)


def test_a_norm_whose_layer_is_also_called_from_outside_is_not_folded():
    class Twice(Finding):
        def maps(self, images):
            return super().maps(images) + self.stem[0](images)

    assert folded_copy(Twice().eval(), IMAGES)[1] == {}


def test_folding_one_of_two_tied_layers_leaves_the_other():
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    model[3].weight = model[0].weight
    with torch.no_grad():
        model[1].running_var.fill_(4.0)
    before = model[3].weight.detach().clone()
    with torch.no_grad():
        expected = model.eval()(IMAGES)
        fold_norms(model)
        torch.testing.assert_close(model(IMAGES), expected, atol=1e-5, rtol=1e-4)
    assert torch.equal(model[3].weight, before)


def test_a_description_is_json_and_the_geometry_survives():
    conv = nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", groups=2, padding_mode="reflect")
    network = nn.Sequential(conv, nn.ReLU(), nn.Conv2d(6, 2, 3, padding=1, padding_mode="circular"))
    reference = [c.state_dict() for c in (network[0], network[2])]
    x = torch.randn(2, 4, 9, 9, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(x)
        quantize_layers(network, {"0": (None, None), "2": (None, None)})
        assert torch.equal(network(x), expected)
    quantizers = UniformQuantizer(8, torch.tensor([0.01])), None
    network[2].weight_quantizer, network[2].input_quantizer = quantizers
    assert type(network[0]) is QuantizedConv2d
    description = json.loads(json.dumps(describe(network)))
    plain = nn.Sequential(
        nn.Conv2d(4, 6, (3, 1), stride=2, padding="valid", groups=2, padding_mode="reflect"),
        nn.ReLU(),
        nn.Conv2d(6, 2, 3, padding=1, padding_mode="circular"),
    )
    again = rebuild(plain, description)
    again.load_state_dict(network.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), network(x))
    assert list(quantized_layers(again)) == ["0", "2"]
    assert not quantized_layers(plain)
    assert len(reference) == 2


def test_descriptions_of_something_else_are_rejected():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    quantize_layers(network, {"0": (None, None)})
    description = describe(network)
    with pytest.raises(InputDataError, match="layer '0' as described, got ReLU"):
        rebuild(nn.Sequential(nn.ReLU()), description)
    with pytest.raises(InputDataError, match="version 1, got 9"):
        rebuild(network, {**description, "version": 9})


# ---------------------------------------------------------------------- masks


def masked_and_quantized(network: nn.Module) -> nn.Module:
    """Folded, every second layer quantized, every one with its mask."""
    fold_norms(network)
    made = {}
    for index, (name, layer) in enumerate(masked_layers(network).items()):
        scale = layer.weight.detach().abs().flatten(1).amax(1) / 7
        weights = UniformQuantizer(4, scale, granularity="channel")
        inputs = UniformQuantizer(8, torch.tensor([0.02]), torch.tensor([90]), symmetric=False)
        if index % 2:
            made[name] = (weights, inputs if index % 3 else None)
    return quantize_layers(network, made)


@pytest.mark.parametrize("name", NETWORKS)
def test_folding_keeps_masks(name):
    plain = make_model(name).eval()
    model = sparsified(plain, 0.3)
    masks = {n: m.weight_mask.clone() for n, m in masked_layers(model).items()}
    with torch.no_grad():
        expected = model(IMAGES)
        folded = fold_norms(model)
        torch.testing.assert_close(model(IMAGES), expected, atol=1e-5, rtol=1e-4)
    assert folded == foldable_norms(plain)
    for layer, mask in masks.items():
        module = model.get_submodule(layer)
        assert torch.equal(module.weight_mask, mask)
        assert isinstance(module, SparseConv2d | nn.Linear)


@pytest.mark.parametrize("name", NETWORKS)
def test_masked_networks_are_rebuilt_from_their_description(name):
    for change in (lambda network: network, masked_and_quantized):
        network = change(sparsified(make_model(name), 0.3)).eval()
        description = json.loads(json.dumps(describe(network)))
        again = rebuild(make_model(name), description)
        assert all(m.weight_mask.all() for m in masked_layers(again).values())
        again.load_state_dict(network.state_dict())
        with torch.no_grad():
            assert torch.equal(again(IMAGES), network(IMAGES))
        assert list(masked_layers(again)) == list(masked_layers(network))
    assert "masked" not in describe(make_model(name))


@pytest.mark.parametrize("name", NETWORKS)
def test_baked_networks_have_zeros_and_no_masks(name):
    for change in (lambda network: network, masked_and_quantized):
        network = change(sparsified(make_model(name), 0.3)).eval()
        masks = {n: m.weight_mask for n, m in masked_layers(network).items()}
        baked = finalise(network, quantized=True)
        assert not masked_layers(baked)
        assert not any("mask" in key for key in baked.state_dict())
        with torch.no_grad():
            assert torch.equal(baked(IMAGES), network(IMAGES))
        for layer, mask in masks.items():
            module = baked.get_submodule(layer)
            plain = module[1] if isinstance(module, nn.Sequential) else module
            assert type(plain) in (nn.Conv2d, nn.Linear)
            assert not plain.weight[~mask].any()
        assert masked_layers(network).keys() == masks.keys()


def test_a_layer_used_twice_is_baked_once():
    layer = sparse_layer(nn.Conv2d(3, 3, 1), torch.rand(3, 3, 1, 1) < 0.5)
    baked = finalise(nn.Sequential(layer, nn.ReLU(), layer), quantized=True)
    assert type(baked[0]) is nn.Conv2d
    assert baked[0] is baked[2]


def test_masked_layers_may_be_quantized():
    model = sparsified(make_model("plain"), 0.3)
    graph = trace(make_model("plain"), EXAMPLE).graph
    assert list(bit_layers(model, graph, ()).layers) == list(masked_layers(model))


def test_masks_of_something_else_are_rejected():
    description = describe(sparsified(nn.Sequential(nn.Conv2d(3, 4, 1)), 0.5))
    with pytest.raises(InputDataError, match="layer '0' as described, got ReLU"):
        rebuild(nn.Sequential(nn.ReLU()), description)
