"""Proxies of transformers are what they say, on a small language model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.benchmarks.learners import proxy_transformers as study
from amc_compress.learners import ChannelPruning
from amc_compress.learners.networks.block_influence import Span
from amc_compress.learners.training.config import TrainingConfig
from amc_env import CompressionEnv, CompressionPlan


class Words(nn.Module):
    """Two residual branches between an embedding and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(20, 8), nn.Linear(8, 20)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8)) for _ in range(2)
        )

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.words(input_ids)
        for branch in self.branches:
            x = x + branch(x)
        return self.head(x)


@pytest.fixture(scope="module")
def problem() -> study.Problem:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ids = torch.randint(20, (6, 16, 12))
        batches = [{"input_ids": x, "labels": x} for x in ids]
        spans = [Span(f"branches.{i}", f"branches.{i}.2", adds=True) for i in range(2)]
        return study.Problem(
            Words(), batches[:2], batches[2:4], batches[4:], "language-modelling", "blocks", spans
        )


def test_rows_hold_what_the_learner_and_formulas_say(problem: study.Problem) -> None:
    learner = ChannelPruning(
        problem.model, problem.example, problem.train, problem.seen, task=problem.task,
        n_validation=32, round_to=1, decide_depth=True,
    )  # fmt: skip
    env = CompressionEnv(learner, "macs=0.6")
    proxies = study.Proxies(problem, learner)
    plans = study.plans_of(env, proxies, 9, seed=0)
    assert len(set(plans)) == 9
    assert all(env.budget.is_met(env.cost_ratio(plan)) for plan in plans)

    plan = study.equal_widths(env, ["branches.0"])
    values = {d.target: plan[d.key] for d in env.decisions if study.is_depth(d)}
    assert values == {"branches.0": 0.0, "branches.1": 1.0}
    assert env.budget.is_met(env.cost_ratio(plan))

    plan = plans[-1]
    config = TrainingConfig(epochs=1, learning_rate=1e-3)
    row = study.evaluated(problem, proxies, env, plan, config, steps=1)
    found = row["proxy"]
    assert found["perplexity, 32 blocks"] == pytest.approx(learner.evaluate(plan), rel=1e-5)
    assert row["proxy"].keys() == row["cpu_seconds"].keys()
    ids = torch.cat([batch["input_ids"] for batch in problem.seen])[:4]
    with torch.no_grad():
        logs = [f(ids).log_softmax(-1) for f in (learner.original, learner.compress(plan).eval())]
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean()
    assert -found["KL, 4 blocks"] == pytest.approx(float(kl), abs=2e-3)
    assert row["finetuned"] < -1.0

    whole = proxies.row(env, CompressionPlan.full(env.decisions))["proxy"]
    assert whole["KL, 16 blocks"] == pytest.approx(0.0, abs=1e-6)
    nothing = ("gradient scores", "layer errors", "block influence")
    np.testing.assert_allclose([whole[name] for name in nothing], 0.0, atol=1e-9)
    assert all(found[name] < 0.0 for name in nothing)
