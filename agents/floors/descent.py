"""Steps down from the cheapest plan that keeps a floor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from amc_compress.agents.heuristics.local_search import neighbour
from amc_compress.agents.trials import Trial
from amc_env import Budget, CompressionEnv, CompressionPlan

_LEAST, _FIRST, _MOST = 0.01, 0.2, 0.5  # shares of the cost that a step takes off
_GROWN, _SHRUNK = 1.5, 0.85  # as in a (1+1) search: three successes of ten keep the step
_REACH = 0.35
_MAX_TRIES = 200


@dataclass(frozen=True)
class Step:
    """A plan below another one.

    Args:
        plan: What is to be evaluated.
        start: The best trial when it was proposed.
        size: Share of the cost that it was to take off.
        budget: In which it was found.
    """

    plan: CompressionPlan
    start: Trial
    size: float
    budget: Budget


class Descent:
    """Where a descent is, and how large its steps are.

    Args:
        best: Where it begins.
        cost: Name of the cost to be made small.
        seen: Plans that are known.
        rng: Draws everything.
    """

    def __init__(
        self, best: Trial, cost: str, seen: set[CompressionPlan], rng: np.random.Generator
    ) -> None:
        self.best = best
        self._cost = cost
        self._seen = seen
        self._rng = rng
        self._size = _FIRST

    def propose(
        self,
        env: CompressionEnv,
        n_pending: int,
        set_upper: Callable[[float], bool],
        lowest: float,
    ) -> Step | None:
        """Returns a step to an unseen plan that costs less than the best one.

        Args:
            env: The decision problem; its budget is changed.
            n_pending: Steps under way; taken to be in vain, as most are.
            set_upper: Bounds the cost; returns whether any plan is left.
            lowest: The least cost of any plan.

        Returns:
            The step; None if nothing is found below.
        """
        cost = self.best.cost_ratio[self._cost]
        size = max(_LEAST, self._size * _SHRUNK**n_pending)
        for _ in range(_MAX_TRIES + 1):
            while not set_upper(max(cost * (1.0 - size), lowest)) and size > _LEAST:
                size = max(_LEAST, size * _SHRUNK)
            start = env.project(self.best.plan.values_for(env.decisions))
            plan = neighbour(env, start, self._rng, _REACH)
            if plan not in self._seen and env.cost_ratio(plan)[self._cost] < cost:
                self._seen.add(plan)
                if n_pending == 0:
                    self._size = size
                return Step(plan, self.best, size, env.budget)
            size = float(self._rng.uniform(_LEAST, _FIRST))
        return None

    def tell(self, step: Step, trial: Trial, is_kept: bool) -> None:
        """Takes the result of a step.

        Args:
            step: As it was proposed.
            trial: Its evaluation.
            is_kept: Whether it keeps the floor.
        """
        if is_kept:
            if trial.cost_ratio[self._cost] < self.best.cost_ratio[self._cost]:
                self.best, self._size = trial, min(_MOST, step.size * _GROWN)
        elif step.start is self.best:
            self._size = max(_LEAST, self._size * _SHRUNK)
