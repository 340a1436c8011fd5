"""What is tied does not depend on how weights and images lie in memory."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import trace
from amc_compress.learners.numerics.layout import set_layout
from amc_compress.models import make_model


class Volumes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(2, 8, 3), nn.Conv3d(8, 4, 1)
        self.pool = nn.AdaptiveAvgPool3d(1)

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(self.second(self.first(x).relu())).flatten(1)


NETWORKS = {
    "digitsnet": (lambda: make_model("digitsnet", in_channels=1), (1, 8, 8)),
    "pooled": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)
        ),
        (3, 8, 8),
    ),
    "pooled to 2 x 2": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 4)
        ),
        (3, 8, 8),
    ),
    "resized": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.Upsample(scale_factor=2), nn.MaxPool2d(2), nn.Conv2d(16, 4, 1)
        ),
        (3, 8, 8),
    ),
    "volumes": (Volumes, (2, 6, 6, 6)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_last_ties_what_contiguous_ties(name: str) -> None:
    make, shape = NETWORKS[name]
    torch.manual_seed(0)
    network, image = make().eval(), torch.randn(1, *shape)
    expected = trace(network, image).graph
    last = torch.channels_last if len(shape) == 3 else torch.channels_last_3d
    network.to(memory_format=last)
    found = trace(network, image.to(memory_format=last)).graph
    assert found == expected
    assert expected.groups


@pytest.mark.slow
def test_a_slice_in_channels_last_can_be_cut_again() -> None:
    network = make_model("digitsnet", in_channels=1).eval()
    image = torch.randn(1, 1, 8, 8)
    traced = trace(network, image)
    for group in traced.graph.groups:
        small = traced.slice({group.name: torch.arange(group.size // 2)})
        set_layout(small, torch.channels_last)
        sizes = {g.name: g.size for g in trace(small, image).graph.groups}
        expected = {g.name: g.size for g in traced.graph.groups} | {group.name: group.size // 2}
        assert sizes == expected
