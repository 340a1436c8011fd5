"""Batch norms are measured again where that leaves the original as good as it was."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from amc_compress.agents import Uniform
from amc_compress.learners import ChannelPruning
from amc_compress.learners.candidates.proxy import batch_norms
from amc_env import Budget, CompressionEnv


def trained() -> nn.Sequential:
    """A network with the statistics of noise of unit variance."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 6),
        )  # fmt: skip
        for _ in range(60):
            network(noise(64))
    return network.eval()


def noise(n: int) -> Tensor:
    return torch.randn(n, 3, 8, 8) * torch.rand(n, 3, 1, 1).exp()


@pytest.mark.parametrize("is_like", [True, False])
def test_statistics_of_unlike_data_are_not_taken(is_like: bool) -> None:
    torch.manual_seed(1)
    factor, offset = (1.0, 0.0) if is_like else (0.05, torch.tensor([1.0, -1.0, 0.0]).view(3, 1, 1))
    images = [factor * noise(96) + offset for _ in range(4)]
    learner = ChannelPruning(
        trained(), images[0], images[:2], images[2:], task="agreement", round_to=1
    )
    assert learner.proxy.recalibrate == is_like
    assert bool(learner.cautions) != is_like
    assert set(learner.cautions) <= set(learner.notes)
    env = CompressionEnv(learner, budget=Budget(macs=0.5))
    plan = Uniform().search(env, episodes=1, seed=0).plan
    small = learner.compress(plan)
    changed = [
        not torch.equal(norm.running_var, whole.running_var[: norm.num_features])
        for norm, whole in zip(
            batch_norms(small),
            batch_norms(learner.traced.slice(learner.kept_units(plan))),
            strict=True,
        )
    ]
    assert all(changed) if is_like else not any(changed)
    means = [norm.running_mean.clone() for norm in batch_norms(small)]
    learner.finetune(small, images[:2], epochs=1)
    moved = [
        not torch.equal(n.running_mean, m) for n, m in zip(batch_norms(small), means, strict=True)
    ]
    assert all(moved) if is_like else not any(moved)
    if not is_like:
        learner.recalibrate(small)
        assert learner.score(small) < learner.evaluate(plan)
