"""Networks for segmentation and detection, as libraries write them."""

from __future__ import annotations

import pytest
import torch
from support.costs import counted_flops
from support.networks.scene_networks import IMAGE, NETWORKS
from support.selection import quick

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace


def claimed(traced: TracedModel, kept: dict[str, torch.Tensor]) -> float:
    at = traced.graph.full() | {name: float(len(units)) for name, units in kept.items()}
    return sum(layer.macs(at) for layer in traced.graph.layers)


@pytest.mark.parametrize("name", quick(NETWORKS, "ssd", "deeplab", "fpn"))
def test_a_cut_is_right_costs_what_it_says_and_reaches_far(name: str) -> None:
    torch.manual_seed(0)
    make, reachable = NETWORKS[name]
    net, image = make().eval(), torch.randn(1, *IMAGE)
    traced = trace(net, image)
    sizes = {group.name: group.size for group in traced.graph.groups}
    batch = torch.randn(2, *IMAGE)
    for seed in range(2):
        kept = random_cut(sizes, torch.Generator().manual_seed(seed), None)
        small = traced.slice(kept)
        with torch.no_grad():
            assert difference(small(batch), traced.mask(kept)(batch)) <= 1e-4
        assert 2 * claimed(traced, kept) == counted_flops(small, image)
    smallest = {group: torch.tensor([0]) for group in sizes}
    assert claimed(traced, smallest) <= reachable * claimed(traced, {})
    traced.slice(smallest).train()(batch)
