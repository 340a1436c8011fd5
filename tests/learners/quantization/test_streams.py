"""The sums that layer norms read are matched, not the outputs of the layers in branches."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import UniformQuantization
from amc_compress.learners.quantization.streams import find_streams, stream_means
from amc_env import CompressionPlan

_WIDTH = 8


class _Branch(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(_WIDTH, 16), nn.Linear(16, _WIDTH)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.scale * self.down(self.up(x).relu())
        return result


class _Network(nn.Module):
    """Two branches with norms before or behind them, and one norm more."""

    def __init__(self, *, before: bool, scale: float = 1.0) -> None:
        super().__init__()
        self.first = nn.Linear(4, _WIDTH)
        self.branches = nn.ModuleList(_Branch(scale) for _ in range(2))
        self.norms = nn.ModuleList(nn.LayerNorm(_WIDTH) for _ in range(3))
        self.last = nn.Linear(_WIDTH, 3)
        self.before = before

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for branch, norm in zip(self.branches, self.norms, strict=False):
            x = x + branch(norm(x)) if self.before else norm(x + branch(x))
        result: Tensor = self.last(self.norms[2](x).mean(1))
        return result


def _network(**options: bool | float) -> nn.Module:
    torch.manual_seed(0)
    return _Network(**options).eval()  # type: ignore[arg-type]


_X = torch.randn(64, 5, 4, generator=torch.Generator().manual_seed(1))
_LAYERS = ["first", *(f"branches.{i}.{name}" for i in (0, 1) for name in ("up", "down")), "last"]


def test_the_last_layer_that_adds_to_a_sum_is_found() -> None:
    before = find_streams(_network(before=True), _X, _LAYERS)
    assert before == {
        "norms.0": "first",
        "norms.1": "branches.0.down",
        "norms.2": "branches.1.down",
    }
    behind = find_streams(_network(before=False), _X, _LAYERS)
    assert behind == {"norms.0": "branches.0.down", "norms.1": "branches.1.down"}


def test_what_a_layer_adds_scaled_is_not_its_to_correct() -> None:
    assert find_streams(_network(before=True, scale=0.5), _X, _LAYERS) == {"norms.0": "first"}


@pytest.mark.parametrize("before", [True, False])
def test_quantized_sums_have_the_means_of_the_original(before: bool) -> None:
    network = _network(before=before)
    batches = [(_X, torch.arange(64) % 3)]
    learner = UniformQuantization(
        network, _X[:4], batches, batches, activation_bits=16, first_last_bits=None, threads=1
    )
    plan = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
    norms = find_streams(network, _X, _LAYERS)
    expected = stream_means(network, _X, norms)
    matched = stream_means(learner.compress(plan), _X, norms)
    plain = learner.quantize(learner.original, plan, recalibrate=False)
    for norm, mean in stream_means(plain, _X, norms).items():
        assert (mean - expected[norm]).abs().max() > 1e-3
        torch.testing.assert_close(matched[norm], expected[norm], atol=1e-5, rtol=1e-5)
    assert learner.evaluate(plan) == learner.score(learner.compress(plan))
