"""A kind of decision from outside: the rank of a layer's weight, with a cost and a learner."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc_env import (
    Bar,
    CompressionPlan,
    CostModel,
    Decision,
    DecisionKind,
    LayerGraph,
    LayerSpec,
    Panel,
    Width,
)

WIDTHS = {"first": (24, 16), "second": (16, 12)}


class Rank(DecisionKind):
    """The rank of the product of two matrices that takes the place of a weight."""

    def check(self, choices: Sequence[float], key: str) -> None:
        super().check(choices, key)
        if any(choice != int(choice) for choice in choices):
            raise ValueError(f"Expected whole ranks for {key}, got {choices}.")

    def kept(self, value: float, size: int) -> str:
        return f"{value:g}/{size}"


RANK = Rank(
    "rank",
    "a rank",
    low=1.0,
    observed="rank decided for the layer on its scale, 1 if it is not decided",
    costs=("params",),
    panel=Panel("rank", (Bar("rank", "rank", "#3a7d44"),)),
    caption="Ranks of the weights, of the largest one.",
)


class FactoredMacs(CostModel):
    """Multiply-adds of two matrices in the place of each weight."""

    name = "factored_macs"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        ends = [WIDTHS[d.target] for d in decisions]
        self._per_rank = np.array([a + b for a, b in ends], dtype=np.float64)

    def __call__(self, values):
        return float(self._per_rank @ np.asarray(values, dtype=np.float64))


class RankLearner:
    """Two layers; what is lost is a formula."""

    graph = LayerGraph(
        tuple(LayerSpec(n, "linear", Width(a), Width(b)) for n, (a, b) in WIDTHS.items()), ()
    )
    original_score = 1.0
    metric = "accuracy"
    best_score = 1.0

    def __init__(self, kind: DecisionKind = RANK) -> None:
        self.decisions = tuple(
            Decision(n, kind, tuple(float(k) for k in range(1, b + 1)), b)
            for n, (_, b) in WIDTHS.items()
        )

    def evaluate(self, plan: CompressionPlan) -> float:
        values = plan.values_for(self.decisions)
        lost = [1.0 - v / d.size for v, d in zip(values, self.decisions, strict=True)]
        return 1.0 - 0.4 * lost[0] ** 2 - 0.2 * lost[1] ** 2
