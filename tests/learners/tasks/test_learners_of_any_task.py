"""Every kind of learner on other tasks, inputs and outputs than pictures and classes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.learner import CandidateLearner
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.joint.prepare import joint_compression
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.sparsification.learner import WeightSparsification
from amc_compress.learners.tasks.inputs import ask, to_inputs
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.training.config import TrainingConfig
from amc_env.plan import CompressionPlan
from tests.support.selection import quick

LEARNERS: dict[str, Callable[..., CandidateLearner[Any]]] = {
    "channels": ChannelPruning,
    "taylor": lambda *given, **told: ChannelPruning(*given, criterion="taylor", **told),
    "bits": UniformQuantization,
    "density": WeightSparsification,
    "joint": joint_compression,
}


class Tokens(nn.Module):
    """Ids and a mask by name, several outputs by name: one vector per text, one per token."""

    def __init__(self, outputs: int, per_token: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(30, 12)
        self.first = nn.Linear(12, 24)
        self.second = nn.Linear(24, 16)
        self.head = nn.Linear(16, outputs)
        self.per_token = per_token

    def forward(self, ids: Tensor, *, mask: Tensor | None = None) -> dict[str, Tensor]:
        x = self.second(self.first(self.table(ids)).relu()).relu()
        if self.per_token:
            return {"logits": self.head(x), "hidden": x}
        weight = torch.ones_like(ids) if mask is None else mask.long()
        pooled = (x * weight.unsqueeze(-1)).sum(1) / weight.sum(1, keepdim=True)
        return {"logits": self.head(pooled), "hidden": x}


class Maps(nn.Module):
    """Pictures to one map per class, at their resolution."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 16, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.middle = nn.Conv2d(16, 24, 3, padding=1)
        self.up = nn.ConvTranspose2d(24, 16, 2, stride=2)
        self.head = nn.Conv2d(16 + 3, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.middle(self.norm(self.down(x)).relu()).relu()
        out: Tensor = self.head(torch.cat((self.up(inner), x), 1))
        return out


class Pair(nn.Module):
    """Two inputs by position, numbers as the answer."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 16), nn.Linear(4, 16)
        self.both = nn.Linear(16, 20)
        self.head = nn.Linear(20, outputs)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = self.head(self.both((self.left(x) + self.right(y)).relu()).relu())
        return out


def tokens(targets: Callable[[Tensor], Tensor] | None, seed: int, size: int = 16) -> Any:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(30, (size, 5 + seed % 3), generator=generator)
    batch = {"ids": ids, "mask": torch.ones_like(ids).bool()}
    return batch if targets is None else {**batch, "labels": targets(ids)}


def pictures(targets: Callable[[Tensor], Tensor] | None, seed: int, size: int = 16) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 3, 8, 8, generator=generator)
    return (x,) if targets is None else (x, targets(x))


def pairs(targets: Callable[[Tensor], Tensor] | None, seed: int, size: int = 16) -> Any:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 6, generator=generator)
    y = torch.randn(size, 4, generator=generator)
    return (x, y) if targets is None else (x, y, targets(x))


@dataclass(frozen=True)
class Case:
    """A task, its network, and how a batch is made."""

    task: str
    network: Callable[[], nn.Module]
    batch: Callable[[int], Any]


CASES = {
    "texts": Case("classification", lambda: Tokens(3), lambda s: tokens(lambda i: i[:, 0] % 3, s)),
    "tags": Case(
        "token-classification", lambda: Tokens(4, True), lambda s: tokens(lambda i: i % 4, s)
    ),
    "labels": Case(
        "multilabel", lambda: Tokens(2), lambda s: tokens(lambda i: (i[:, :2] > 14).float(), s)
    ),
    "maps": Case(
        "segmentation", lambda: Maps(3), lambda s: pictures(lambda x: (x > 0).sum(1) % 3, s)
    ),
    "numbers": Case(
        "regression", lambda: Pair(2), lambda s: pairs(lambda x: x[:, :2] * x[:, 2:4], s)
    ),
    "without targets": Case("agreement", lambda: Maps(3), lambda s: pictures(None, s)),
    "vectors": Case("embedding", lambda: Tokens(8), lambda s: tokens(None, s)),
}


def prepared(case: Case, learner: str) -> CandidateLearner[Any]:
    torch.manual_seed(0)
    network = case.network().eval()
    batches = [case.batch(seed) for seed in range(8)]
    inputs, _ = make_task(case.task).split(batches[0])
    return LEARNERS[learner](
        network, inputs, batches[:4], batches[4:], task=case.task, n_calibration=48,
        n_recalibration=32, n_validation=40,
    )  # fmt: skip


BOTH = [(case, learner) for case in CASES for learner in LEARNERS]
FAST = [
    ("texts", "joint"), ("tags", "bits"), ("labels", "taylor"), ("maps", "channels"),
    ("numbers", "density"), ("without targets", "bits"), ("vectors", "channels"),
]  # fmt: skip


@pytest.mark.parametrize("both", quick(BOTH, *FAST), ids="-".join)
def test_a_learner_compresses_and_trains_a_network_of_any_task(both: tuple[str, str]) -> None:
    case, learner = both
    found = prepared(CASES[case], learner)
    full = CompressionPlan.full(found.decisions)
    assert np.isfinite(found.original_score)
    half = CompressionPlan({d.key: d.choices[len(d.choices) // 2] for d in found.decisions})
    score = found.evaluate(half)
    assert np.isfinite(score)
    assert found.evaluate(half) == score
    assert np.isfinite(found.evaluate_full(half))
    if learner in ("channels", "density"):
        assert found.evaluate(full) == found.original_score
    if found.task.best_score is not None:
        assert score <= found.task.best_score
    for curve in found.gradient_scores().values():
        assert np.isfinite(curve).all()
    small = found.compress(half)
    batches = [CASES[case].batch(seed) for seed in range(8)]
    result = found.finetune(
        small, batches, config=TrainingConfig(epochs=2, learning_rate=0.02, precision="fp32")
    )
    assert np.isfinite(result.best_score)
    inputs, _ = make_task(CASES[case].task).split(CASES[case].batch(9))
    with torch.no_grad():
        ask(small, to_inputs(inputs))
    if learner == "channels":
        before = sum(p.numel() for p in found.original.parameters())
        assert sum(p.numel() for p in small.parameters()) < 0.9 * before
