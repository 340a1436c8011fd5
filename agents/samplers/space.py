"""What a sampler's parameters mean: requests of the single decisions, around a plan."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from amc_env import CompressionEnv, CompressionPlan
from amc_env.budgets.budget import value_span
from amc_env.one_shot import positions, rescale


class RequestSpace:
    """Maps between a sampler's parameters, one per decision, and plans.

    Args:
        env: The decision problem.
        centre: The plan that 0.5 everywhere means.
        spend: Whether requests are rescaled until the budget is spent; projected otherwise.
    """

    def __init__(self, env: CompressionEnv, centre: CompressionPlan, spend: bool) -> None:
        self._env = env
        self._spend = spend
        # A corner would leave one half of the box without room.
        self._centre = np.clip(positions(env, centre).astype(float), 0.02, 0.98)
        self.names = [decision.key for decision in env.decisions]

    def plan(self, parameters: Sequence[float]) -> CompressionPlan:
        """Returns the plan that parameters mean."""
        u, c = np.asarray(parameters, dtype=float), self._centre
        requests = np.where(u <= 0.5, 2 * u * c, c + (2 * u - 1) * (1 - c))
        if self._spend:
            return rescale(self._env, requests)
        spans = np.array([value_span(d) for d in self._env.decisions])
        return self._env.project(spans[:, 0] + requests * (spans[:, 1] - spans[:, 0]))

    def parameters(self, plan: CompressionPlan) -> npt.NDArray[np.float64]:
        """Returns parameters that mean a plan, as nearly as rounding allows."""
        p, c = positions(self._env, plan).astype(float), self._centre
        u: npt.NDArray[np.float64] = np.where(p <= c, p / (2 * c), 0.5 + (p - c) / (2 * (1 - c)))
        return np.clip(u, 0.0, 1.0)
