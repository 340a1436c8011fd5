"""An evaluated plan as the environment gives it."""

from __future__ import annotations

from dataclasses import dataclass

from amc_env.plan import CompressionPlan
from amc_env.scores.evaluations import Evaluation
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
