"""Networks that structural pruning tools silently break or reject."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from support.costs import (
    counted_bytes,
    counted_flops,
    counted_parameters,
    graph_bytes,
    graph_flops,
    graph_parameters,
)
from support.networks.torture_networks import NETWORKS
from support.selection import quick

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut, randomised
from amc_compress.learners.tracing.traced_model import TracedModel, trace

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
BATCH = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))

# By hand: what can be cut, and how many units it has.
GROUPS = {
    "resnet20_option_a": {"conv1": 8, "blocks.3.conv2": 8, "blocks.6.conv2": 16},
    "resnet20_conv_shortcut": {"conv1": 8, "blocks.3.conv2": 16, "blocks.6.conv2": 32},
    "mobilenet_v2": {"0.0": 8, "2.conv.0.0": 24, "3.conv.4.0": 12, "4.conv.0.0": 36},
    "resnext": {"0.0": 16, "2.body.0.0": 4, "2.body.2.0": 4},
    "densenet": {"0": 8, "1.conv": 6, "2.conv": 6, "5": 10, "7.conv": 6, "8.conv": 6},
    "shufflenet": {"0.0": 4, "0.0#2": 4, "0.0#3": 8, "4.0": 24},
    "squeeze_excite": {"0.0": 16, "1.fc1": 4, "3.0": 12, "5.fc1": 4},
    "conv_flatten_linear": {"conv1": 6, "conv2": 16, "fc1": 24},
    "vit": {"blocks.0.attn.qkv": 4, "blocks.0.fc1": 48, "blocks.1.attn.qkv": 4},
    "vit_fused": {"blocks.0.attn.qkv": 4, "blocks.0.fc1": 48, "blocks.1.attn.qkv": 4},
    "transformer_encoder": {"encoder.layers.0.linear1": 32, "encoder.layers.1.linear1": 32},
    "frozen_parameters": {"conv1": 8, "blocks.0.conv1": 8},
    "used_twice": {"stem.0": 8, "inner.0": 12},
    "control_flow": {"stem.0": 8, "layers.1.conv1": 16, "layers.1.conv2": 8},
    "inception": {"0.0": 8, "1.a.0": 6, "1.b.0.0": 4, "1.b.2.0": 8, "1.c.1.0": 6},
    "group_norm": {"conv1": 4, "conv2": 8},
}


@cache
def traced(name: str) -> TracedModel:
    torch.manual_seed(0)
    model = NETWORKS[name]()
    # Trained networks are generic; at their first values many channels would be alike.
    randomised(model, torch.Generator().manual_seed(5))
    return trace(model.eval(), EXAMPLE)


def cuts(name: str) -> list[dict[str, torch.Tensor]]:
    sizes = {group.name: group.size for group in traced(name).graph.groups}
    generator = torch.Generator().manual_seed(7)
    return [random_cut(sizes, generator, fraction) for fraction in (0.5, None, None, 0.0)]


@pytest.mark.parametrize("name", NETWORKS)
def test_every_group_that_exists_is_found(name: str) -> None:
    found = {group.name: group.size for group in traced(name).graph.groups}
    assert GROUPS[name].items() <= found.items()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_computes_what_the_mask_computes(name: str) -> None:
    model = traced(name)
    with torch.no_grad():
        for kept in cuts(name):
            assert difference(model.slice(kept)(BATCH), model.mask(kept)(BATCH)) <= 1e-5
        masked = model.mask(cuts(name)[0])(BATCH)
        assert difference(masked, model.model(BATCH)) > 1e-4  # or the comparison says nothing


@pytest.mark.parametrize("name", NETWORKS)
def test_costs_of_a_cut_equal_those_of_the_sliced_network(name: str) -> None:
    model = traced(name)
    for kept in [{}, *cuts(name)]:
        counts = model.graph.full() | {group: float(len(units)) for group, units in kept.items()}
        small = model.slice(kept)
        assert graph_flops(model.graph, counts) == counted_flops(small, EXAMPLE)
        assert graph_parameters(model.graph, counts) == counted_parameters(small)
        assert graph_bytes(model.graph, counts) == counted_bytes(small)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_slice_is_smaller_and_keeps_names_and_class(name: str) -> None:
    model = traced(name)
    small = model.slice(cuts(name)[0])
    assert counted_parameters(small) < counted_parameters(model.model)
    assert list(small.state_dict()) == list(model.model.state_dict())
    assert isinstance(small, type(model.model))


@pytest.mark.parametrize("name", quick(NETWORKS, "shufflenet", "vit", "control_flow"))
def test_the_network_itself_is_never_modified(name: str) -> None:
    torch.manual_seed(0)
    model = NETWORKS[name]().train()
    attributes = [set(vars(module)) for module in model.modules()]
    state = copy.deepcopy(model.state_dict())
    result = trace(model, EXAMPLE)
    small = result.slice({group.name: torch.tensor([0]) for group in result.graph.groups})
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert attributes == [set(vars(module)) for module in model.modules()]


@pytest.mark.parametrize("name", NETWORKS)
def test_layers_without_a_free_channel_have_a_reason(name: str) -> None:
    graph = traced(name).graph
    free = {layer for group in graph.groups for layer in group.producers}
    for layer in graph.layers:
        assert layer.kind == "matmul" or layer.name in free or graph.frozen[layer.name]
