"""An evaluated plan as the environment gives it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from amc_env.plan import CompressionPlan
from amc_env.scores.evaluations import Evaluation
from amc_env.scores.metric import Metric
from amc_env.support.deprecation import renamed_attribute


@dataclass(frozen=True)
class Outcome:
    """An evaluated plan.

    Args:
        plan: The complete plan.
        score: Its score, higher is better: its proxy accuracy, for a classifier.
        cost: Cost name -> absolute cost.
        cost_ratio: Cost name -> cost / original cost.
        reward: What the reward function makes of it.
        feasible: Whether the plan meets the budget, and could be evaluated.
        evaluation: The answer of the evaluations service; None where the score came from elsewhere.
    """

    plan: CompressionPlan
    score: float
    cost: dict[str, float]
    cost_ratio: dict[str, float]
    reward: float
    feasible: bool
    evaluation: Evaluation | None = None

    accuracy = renamed_attribute("accuracy", "score", removed_in="0.2")

    def info(self, metric: Metric) -> dict[str, Any]:
        """Returns what the last step of an episode says of it.

        Args:
            metric: What the score is made from.
        """
        return {
            **metric.named(self.score),
            "cost": dict(self.cost),
            "cost_ratio": dict(self.cost_ratio),
            "plan": dict(self.plan),
        }
