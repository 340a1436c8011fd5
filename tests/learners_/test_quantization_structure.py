"""Folding, baking and rebuilding: what must not change a network's outputs."""

from __future__ import annotations

import json

import pytest
import torch
from contracts.learner_contract import NETWORKS, make_data, make_model
from torch import nn

from amc_env.errors import InputDataError
from learners.quantization import describe, fold_norms, quantized_layers, rebuild
from learners.quantization.modules import QuantizedConv2d
from learners.quantization.structure import (
    folded_copy,
    quantize_layers,
    without_identities,
)
from learners.quantization.uniform_quantizer import UniformQuantizer

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


def test_descriptions_of_something_else_are_refused():
    network = nn.Sequential(nn.Conv2d(3, 4, 1))
    quantize_layers(network, {"0": (None, None)})
    description = describe(network)
    with pytest.raises(InputDataError, match="layer '0' as described, got ReLU"):
        rebuild(nn.Sequential(nn.ReLU()), description)
    with pytest.raises(InputDataError, match="version 1, got 9"):
        rebuild(network, {**description, "version": 9})
