"""Layers that know their width in one way in evaluation and in another elsewhere are still cut."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import trace


class Instances(nn.Module):
    """A norm of every image, whose kernel gets the channels of a batch in a row."""

    def __init__(self, affine: bool, tracked: bool) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.InstanceNorm2d(16, affine=affine, track_running_stats=tracked)
        self.last = nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.norm(self.stem(x)).relu()).mean((2, 3))


class Positions(nn.Module):
    """Position embeddings are resized for images of another size, as maps or as tokens."""

    def __init__(self, as_tokens: bool, mode: str) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 2, 2)
        self.as_tokens, self.mode = as_tokens, mode
        self.place = nn.Parameter(torch.randn((1, 64, 16) if as_tokens else (1, 16, 8, 8)))
        self.wide = nn.Conv2d(16, 24, 1)
        self.last = nn.Conv2d(24, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        place = self.place
        if self.as_tokens:
            place = place.reshape(1, 8, 8, -1).permute(0, 3, 1, 2)
        if place.shape[2:] != x.shape[2:]:
            place = F.interpolate(place, x.shape[2:], mode=self.mode)
        return self.last(self.wide(x + place).relu()).mean((2, 3))


class Generator(nn.Module):
    """The outputs of a linear layer become a map, which is enlarged."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, 16 * 16)
        self.last = nn.Conv2d(16, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x.mean((2, 3))).view(-1, 16, 4, 4)
        return self.last(F.max_pool2d(F.interpolate(x, scale_factor=3), 2).relu())


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    **{
        f"instance norm, {affine=}, {tracked=}": lambda a=affine, t=tracked: Instances(a, t)  # type: ignore[misc]
        for affine in (False, True)
        for tracked in (False, True)
    },
    **{
        f"positions, {tokens=}, {mode}": lambda t=tokens, m=mode: Positions(t, m)  # type: ignore[misc]
        for tokens in (False, True)
        for mode in ("nearest", "bilinear", "bicubic")
    },
    "generator": Generator,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_layer_before_is_cut_and_right_in_both_modes(name: str) -> None:
    torch.manual_seed(0)
    model = trace(NETWORKS[name]().eval(), torch.rand(1, 3, 16, 16))
    sizes = {group.name: group.size for group in model.graph.groups}
    assert sizes["stem"] == 16
    kept = random_cut(sizes, torch.Generator().manual_seed(1))
    small, masked = model.slice(kept), model.mask(kept)
    for training in (False, True):
        for shape in ((1, 3, 16, 16), (3, 3, 16, 16), (2, 3, 24, 12)):
            images = torch.rand(shape)
            with torch.no_grad():
                found, expected = small.train(training)(images), masked.train(training)(images)
            assert difference(found, expected) <= 1e-5
