"""Priors: a learner's own estimates of plans, before any evaluation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amc_compress.agents.curves.allocation import Curves, checked_curves
from amc_env import CompressionEnv, CompressionPlan
from amc_env.plan import CURVES

PRIORS = ("none", *CURVES)

Prior = Callable[[Sequence[CompressionPlan]], npt.NDArray[np.float64]]
"""Plans -> how good they should be, shape ``(n_plans,)``; only comparisons mean something."""


def read_curves(env: CompressionEnv, name: str) -> Curves | None:
    """Returns the curves of the learner: the damage of every choice, per decision.

    Args:
        env: The decision problem.
        name: One of :data:`PRIORS`: the learner's method that gives the curves.

    Returns:
        None for ``"none"``, and where the learner has no such method.

    Raises:
        AgentError: If a curve is missing or has another length than the decision's grid.
    """
    read = None if name == "none" else getattr(env.learner, name, None)
    return None if read is None else checked_curves(env, read(), f"{name}()")


def prior_of(env: CompressionEnv, curves: Curves) -> Prior:
    """Returns minus the sum of the damages of a plan's choices."""

    def prior(plans: Sequence[CompressionPlan]) -> npt.NDArray[np.float64]:
        chosen = np.array([plan.choices_for(env.decisions) for plan in plans], dtype=np.intp)
        damages = np.stack([curve[chosen[:, i]] for i, curve in enumerate(curves)])
        total: npt.NDArray[np.float64] = damages.sum(0)
        return -total

    return prior


def standardised(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Returns values with mean 0 and standard deviation 1; zeros where all are equal."""
    spread = float(values.std())
    centred: npt.NDArray[np.float64] = values - values.mean()
    return centred / spread if spread > 0.0 else np.zeros_like(centred)
