"""``onnx_bytes``: what is counted is never under the file, and hardly above it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.onnx_size import onnx_bytes_cost
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.models import make_model
from amc_env import CompressionEnv, CompressionPlan
from amc_env.plan import keep_ratio_decision

IMAGE = torch.zeros(1, 3, 16, 16)


class Mixed(nn.Module):
    """Folded and unfolded norms, equal biases, a hidden linear layer, and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1)
        self.before = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.hidden = nn.Linear(16, 24)
        self.last = nn.Linear(24, 5)
        self.register_buffer("grid", torch.arange(256.0).reshape(1, 1, 16, 16) / 256)
        for module in (self.before, self.norm):
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.before(torch.relu(self.first(x + self.grid)))  # cannot be folded
        x = torch.relu(self.norm(self.second(x)))
        return self.last(torch.relu(self.hidden(x.mean((2, 3)))))


def zero_biases() -> nn.Module:
    """Its biases are equal, so that the file of the original holds them once."""
    network = Mixed()
    for module in (network.first, network.hidden, network.last):
        nn.init.zeros_(module.bias)
    return network


@pytest.mark.parametrize(
    "make",
    [
        Mixed,
        pytest.param(zero_biases, marks=pytest.mark.slow),
        pytest.param(
            lambda: make_model("digitsnet", in_channels=3, image_size=16),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            lambda: make_model("mobilenet_v2", in_channels=3, image_size=16),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_file_is_larger_than_counted(make, tmp_path: Path):
    torch.manual_seed(0)
    network = make().eval()
    traced = trace(network, IMAGE)
    decisions = [keep_ratio_decision(g.name, g.size, 4) for g in traced.graph.groups]
    cost = onnx_bytes_cost(network, traced.graph, decisions, IMAGE)
    original = export_onnx(network, IMAGE, tmp_path / "original.onnx").path.stat().st_size
    assert cost.original(decisions) == original
    rng = np.random.default_rng(0)
    counted = []
    for pick in (lambda d: d.choices[0], lambda d: float(rng.choice(d.choices))):
        plan = CompressionPlan({d.key: pick(d) for d in decisions})
        values = plan.values_for(decisions)
        kept = {
            d.target: torch.arange(d.units(value))
            for d, value in zip(decisions, values, strict=True)
        }
        small = traced.slice(kept).eval()
        size = export_onnx(small, IMAGE, tmp_path / "small.onnx").path.stat().st_size
        assert size <= cost(values) <= 1.02 * size + 600
        counted.append(cost(values))
    assert counted[0] < counted[1] < original


def test_a_limit_of_the_file_is_a_budget():
    torch.manual_seed(0)
    network = Mixed().eval()
    traced = trace(network, IMAGE)

    class Learner:
        graph = traced.graph
        decisions = tuple(keep_ratio_decision(g.name, g.size, 4) for g in traced.graph.groups)
        original_score = 0.9

        def evaluate(self, plan: CompressionPlan) -> float:
            return 0.5

    cost = onnx_bytes_cost(network, traced.graph, Learner.decisions, IMAGE)
    env = CompressionEnv(Learner(), "onnx_bytes<=12kB,macs=0.9", cost_models={"onnx_bytes": cost})
    outcome = env.evaluate(env.uniform_plan())
    assert outcome.feasible
    assert 9_000 < outcome.cost["onnx_bytes"] <= 12_000
