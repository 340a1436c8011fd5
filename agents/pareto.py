"""Pareto fronts of trials."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc_compress.agents.trials import Trial
from amc_env.validation.checks import checked


@checked
def pareto_front(trials: Sequence[Trial], costs: Sequence[str] | None = None) -> list[Trial]:
    """Returns the trials that no other one beats in reward and every cost, cheapest first.

    Args:
        trials: Those of a search result.
        costs: Names of the costs; all that the trials have if not given.
    """
    if not trials:
        return []
    names = list(trials[0].cost_ratio) if costs is None else list(costs)
    goals = np.array([[-t.reward, *(t.cost_ratio[n] for n in names)] for t in trials])
    front: list[Trial] = []
    seen: set[tuple[float, ...]] = set()
    for trial, goal in zip(trials, goals, strict=True):
        beaten = bool(((goals <= goal).all(1) & (goals < goal).any(1)).any())
        if not beaten and tuple(goal) not in seen:
            front.append(trial)
            seen.add(tuple(goal))
    return sorted(front, key=lambda t: tuple(t.cost_ratio[n] for n in names))
