"""Torch-Pruning's dependency graph as an oracle, on networks that it is right about."""

from __future__ import annotations

import warnings

import pytest
import torch
from support.networks.torture_networks import NETWORKS
from torch import nn

from amc_compress.learners.tracing.traced_model import trace

EXAMPLE = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
RIGHT = ["resnet20_conv_shortcut", "mobilenet_v2", "densenet", "squeeze_excite", "inception"]


def oracle(net: nn.Module, layer: str) -> tuple[set[str], set[str]]:
    """Layers whose outputs and inputs go with the outputs of ``layer``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tp = pytest.importorskip("torch_pruning")
        graph = tp.DependencyGraph().build_dependency(net, example_inputs=EXAMPLE)
        module = net.get_submodule(layer)
        group = graph.get_pruning_group(module, tp.prune_conv_out_channels, idxs=[0])
    names = {module: name for name, module in net.named_modules()}
    outputs, inputs = set(), set()
    for dependency, _ in group:
        target = dependency.target.module
        if not isinstance(target, (nn.Conv2d, nn.Linear)):
            continue
        depthwise = isinstance(target, nn.Conv2d) and target.groups == target.in_channels > 1
        is_output = dependency.handler.__name__ in (
            "prune_out_channels", "prune_depthwise_conv_out_channels",
        )  # fmt: skip
        if is_output or depthwise:
            outputs.add(names[target])
        else:
            inputs.add(names[target])
    return outputs, inputs


@pytest.mark.parametrize("name", RIGHT)
def test_the_same_layers_are_tied(name: str) -> None:
    torch.manual_seed(0)
    net = NETWORKS[name]().eval()
    groups = trace(net, EXAMPLE).graph.groups
    assert groups
    for group in groups:
        if isinstance(net.get_submodule(group.name), nn.Conv2d):
            assert oracle(net, group.name) == (set(group.producers), set(group.consumers))
