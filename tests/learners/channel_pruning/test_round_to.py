"""``round_to`` counts channels: what is cut together counts together."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.selection import quick
from torch import Tensor, nn

from amc_compress.learners import ChannelPruning
from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.testing.networks import make_data
from amc_compress.learners.tracing.traced_model import trace
from amc_env import Budget, CompressionEnv, CompressionPlan, InfeasibleBudgetError


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 8, 2, 2), nn.Linear(8, 96)
        self.out, self.head = nn.Linear(32, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        n, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(n, tokens, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, tokens, -1)
        return self.head(self.out(x).mean(1))


def with_head(*layers: nn.Module, width: int) -> nn.Module:
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 4))


NETWORKS = {
    "plain": lambda: with_head(nn.Conv2d(3, 32, 3), nn.ReLU(), width=32),
    "group norm": lambda: with_head(nn.Conv2d(3, 32, 3), nn.GroupNorm(4, 32), width=32),
    "fine group norm": lambda: with_head(nn.Conv2d(3, 32, 3), nn.GroupNorm(16, 32), width=32),
    "grouped": lambda: with_head(
        nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3, groups=4), nn.Conv2d(32, 16, 1), width=16
    ),
    "three groups": lambda: with_head(
        nn.Conv2d(3, 48, 3), nn.Conv2d(48, 48, 3, groups=3), nn.Conv2d(48, 16, 1), width=16
    ),
    "heads": Attention,
}


def widths(network: nn.Module) -> dict[str, int]:
    return {
        name: module.weight.shape[0]
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    }


@pytest.mark.parametrize("round_to", quick([1, 3, 4, 8, 16], 3, 8))
@pytest.mark.parametrize("name", NETWORKS)
def test_every_choice_keeps_a_multiple_of_round_to_channels(name, round_to):
    traced = trace(NETWORKS[name]().eval(), torch.rand(1, 3, 8, 8))
    whole = widths(traced.slice({}))
    decisions = keep_ratio_decisions(traced.graph, round_to, 0.0)
    assert decisions
    groups = {group.name: group for group in traced.graph.groups}
    for decision in decisions:
        group = groups[decision.target]
        offered = {decision.units(choice) for choice in decision.choices}
        for count in range(1, group.size + 1):
            cut = widths(traced.slice({group.name: torch.arange(count)}))
            fits = all(cut[layer] % round_to == 0 for layer in group.producers)
            is_whole = all(cut[layer] == whole[layer] for layer in group.producers)
            assert (count in offered) == (fits or is_whole), (name, group.name, count)


@pytest.mark.parametrize("name", ["group norm", "fine group norm", "grouped", "heads"])
def test_networks_with_tied_channels_are_cut_with_the_default_grid(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name]()
    learner = ChannelPruning(network, torch.rand(1, 3, 8, 8), make_data(64, 1), make_data(64, 2))
    env = CompressionEnv(learner, Budget(macs=0.6))
    plan = env.uniform_plan()
    assert env.cost_ratio(plan)["macs"] <= 0.6
    assert isinstance(plan, CompressionPlan)
    assert learner.compress(plan)(torch.rand(2, 3, 8, 8)).shape == (2, 4)


def test_a_grid_that_offers_nothing_names_round_to():
    network = with_head(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3), width=8)
    learner = ChannelPruning(network, torch.rand(1, 3, 8, 8), make_data(64, 1), make_data(64, 2))
    with pytest.raises(InfeasibleBudgetError, match=r"only one value on this grid.*round_to"):
        CompressionEnv(learner, Budget(macs=0.5))
