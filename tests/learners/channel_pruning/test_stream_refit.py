"""Branches behind those that are left out, fitted to the original's sums: by a slow formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from amc_compress.learners import ChannelPruning
from amc_env import CompressionPlan

N, TOKENS, WIDTH, INNER = 96, 4, 6, 10


class Half(nn.Module):
    def __init__(self, *, bias: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH, bias=bias)

    def forward(self, x):
        return x + self.down(torch.tanh(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(3, WIDTH)
        self.blocks = nn.ModuleList(Half(bias=i != 2) for i in range(4))
        self.head = nn.Linear(WIDTH, 4)

    def features(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return x

    def forward(self, x):
        return self.head(self.features(x).mean(1))


def batches(seed):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(N, TOKENS, 3, generator=generator)
    return [(inputs, torch.randint(0, 4, (N,), generator=generator))]


@pytest.fixture(scope="module")
def learner():
    torch.manual_seed(0)
    data = batches(0)
    return ChannelPruning(
        Stack().eval(), data[0][0][:1], data, batches(1), decide_depth=True, round_to=2,
        precision="fp32", n_calibration=N, n_recalibration=N,
    )  # fmt: skip


def plan_of(learner, *out, keep=1.0):
    return CompressionPlan(
        {
            d.key: float(d.target not in out) if d.kind == "depth" else d.nearest(keep)
            for d in learner.decisions
        }
    )


def slow_fit(z, missing, has_bias):
    """The best ridge for the last quarter of the rows, with ``lstsq`` on rows for the ridge."""
    z, missing = z.double().numpy(), missing.double().numpy()
    n = len(z) - len(z) // 4
    z_mean, r_mean = (x[:n].mean(0) * has_bias for x in (z, missing))
    z, r = z - z_mean, missing - r_mean
    found = []
    for ridge in (0.1, 1.0, 10.0):
        root = np.sqrt(ridge * (z[:n] ** 2).sum(0).mean())
        rows = np.vstack([z[:n], root * np.eye(z.shape[1])])
        wanted = np.vstack([r[:n], np.zeros((z.shape[1], r.shape[1]))])
        change = np.linalg.lstsq(rows, wanted, rcond=None)[0].T
        error = ((r[n:] - z[n:] @ change.T) ** 2).sum()
        found.append((error, change, r_mean - change @ z_mean))
    best = min(found, key=lambda row: row[0])
    return best if best[0] < (missing[n:] ** 2).sum() else (0.0, 0.0 * best[1], 0.0 * best[2])


@torch.no_grad()
def test_later_branches_add_what_is_missing(learner):
    original, inputs = learner.original, batches(0)[0][0]
    names = [b.name for b in learner.graph.branches]
    small = learner.compress(plan_of(learner, names[0]))
    right, there = original.stem(inputs), original.stem(inputs)
    right = original.blocks[0](right)
    for i in (1, 2, 3):
        block, fitted = original.blocks[i], small.blocks[i]
        right = block(right)
        z = torch.tanh(block.up(block.norm(there)))
        missing = (right - there - block.down(z)).flatten(0, 1)
        has_bias = block.down.bias is not None
        _, change, shift = slow_fit(z.flatten(0, 1), missing, has_bias)
        lost = (fitted.down.weight - block.down.weight).numpy()
        np.testing.assert_allclose(lost, change, atol=1e-4)
        if has_bias:
            added = (fitted.down.bias - block.down.bias).numpy()
            np.testing.assert_allclose(added, shift, atol=1e-4)
        there = fitted(there)
    other = batches(5)[0][0]
    errors = [
        float((x.features(other) - original.features(other)).square().mean())
        for x in (small, learner.traced.without(names[0]))
    ]
    assert errors[0] < 0.7 * errors[1]


def test_it_is_what_a_search_evaluates_with_channels_cut_too(learner):
    names = [b.name for b in learner.graph.branches]
    for keep in (1.0, 0.5):
        plan = plan_of(learner, names[1], keep=keep)
        assert learner.evaluate(plan) == learner.score(learner.compress(plan))


def test_where_nothing_is_left_out_or_repaired_nothing_is_fitted(learner):
    whole = learner.compress(plan_of(learner))
    last = [b.name for b in learner.graph.branches][-1]
    for network in (whole, learner.compress(plan_of(learner, last))):
        for i in range(3):
            assert torch.equal(
                network.blocks[i].down.weight, learner.original.blocks[i].down.weight
            )
