"""Layers of every kind can be sparse: masks, patterns along their inputs, files, plain layers."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import WeightSparsification
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import sparse_layer
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_compress.learners.sparsification.patterns import Pattern, mask_for
from amc_env.plan import CompressionPlan


class PaddedAtTheEnd(nn.Conv2d):
    """Pads as TensorFlow does where the stride is 2."""

    def __init__(self) -> None:
        super().__init__(8, 4, 3, stride=2)
        self.padding_of_mine = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(self.padding_of_mine(x))


LAYERS = {
    "subclass": (PaddedAtTheEnd, (8, 6, 5)),
    "linear": (lambda: nn.Linear(8, 4), (8,)),
    "1-d": (lambda: nn.Conv1d(8, 4, 3, padding="same", padding_mode="circular"), (8, 7)),
    "2-d": (lambda: nn.Conv2d(8, 4, 3, groups=2, bias=False), (8, 5, 6)),
    "3-d": (lambda: nn.Conv3d(8, 4, 2), (8, 3, 3, 4)),
    "transposed 1-d": (lambda: nn.ConvTranspose1d(8, 4, 3, 2, groups=2), (8, 5)),
    "transposed 2-d": (lambda: nn.ConvTranspose2d(8, 4, 3, 2, 1, 1, bias=False), (8, 4, 3)),
    "transposed 3-d": (lambda: nn.ConvTranspose3d(8, 4, 2, (1, 2, 1)), (8, 2, 3, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_mask_is_a_layer_with_zeros(name: str) -> None:
    make, shape = LAYERS[name]
    layer, x = make(), torch.randn(2, *shape)
    mask = torch.rand(layer.weight.shape) < 0.5
    zeros = make()
    zeros.load_state_dict(layer.state_dict())
    with torch.no_grad():
        zeros.weight.mul_(mask)
    twin = sparse_layer(layer, mask)
    assert torch.equal(twin(x), zeros(x))
    assert torch.equal(copy.deepcopy(twin)(x), zeros(x))
    assert torch.equal(pickle.loads(pickle.dumps(twin))(x), zeros(x))
    plain = finalise(twin)
    assert type(plain) is type(layer)
    assert torch.equal(plain(x), zeros(x))
    twin(x).sum().backward()
    assert not bool(layer.weight.grad[~mask].any())


@pytest.mark.parametrize("name", LAYERS)
def test_groups_of_four_run_over_inputs(name: str) -> None:
    """Of every 4 inputs that an output reads at a place of the kernel, 2 stay."""
    layer = LAYERS[name][0]()
    mask = mask_for(layer, Pattern.parse("2:4"), layer.weight.numel() // 2)
    assert mask.shape == layer.weight.shape
    groups = getattr(layer, "groups", 1)
    if "transposed" in name:
        per_group = mask.reshape(groups, 8 // groups, -1)  # inputs, outputs x kernel
        counts = per_group.reshape(groups, -1, 4, per_group.shape[2]).sum(2)
    else:
        counts = mask.reshape(4, -1, 4, layer.weight[0, 0].numel()).sum(2)
    assert bool((counts == 2).all())


class UpAndDown(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv1d(2, 8, 4, stride=2, padding=1)
        self.norm = nn.BatchNorm1d(8)
        self.up = nn.ConvTranspose1d(8, 3, 4, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.up(self.norm(self.down(x)).relu())


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_a_network_along_time_is_made_sparse_and_stored(pattern: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = UpAndDown().eval()
    sounds = [torch.randn(16, 2, 24).cumsum(2) for _ in range(4)]
    learner = WeightSparsification(
        network,
        sounds[0],
        sounds[:2],
        sounds[2:],
        task="agreement",
        pattern=pattern,
        proxy="reconstruction",
    )
    left = {"down"} if pattern == "2:4" else set()
    assert set(learner.left_dense) == left
    assert {d.target for d in learner.decisions} == {"down", "up"} - left
    plan = CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions})
    repaired = learner.compress(plan)
    assert repaired.up.weight_mask.float().mean() == 0.5
    score = learner.score(repaired)
    assert score == pytest.approx(learner.evaluate(plan), abs=1e-5)
    assert score > learner.score(learner.unfitted(plan))
    save_packed(repaired, tmp_path / "x.packed", plan=plan)
    again = load_packed(tmp_path / "x.packed", network)
    assert torch.equal(again(sounds[3]), finalise(repaired)(sounds[3]))
