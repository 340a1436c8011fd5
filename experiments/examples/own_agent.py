r"""A search agent of your own, and how it compares with the built-in ones.

The cross-entropy method of ``own_policy.py`` as an ``Agent``: what it gains are records,
resuming, TensorBoard and fair comparisons. Name it as module and class wherever an agent
is named::

    amc compare --task digits-channels-recorded --seeds 20 --evaluations 100 \
        --agent amc_compress.examples.own_agent:CrossEntropy,local,ddpg-one-shot --out runs/mine
    amc compress --agent amc_compress.examples.own_agent:CrossEntropy:batch=5 --out runs/smaller
"""

from __future__ import annotations

import numpy as np

from amc_compress.agents import Agent, Search
from amc_compress.agents.base import DEFAULT_FINALISTS


class CrossEntropy(Agent):
    """Draws actions around a mean, keeps the best fifth, moves the mean there.

    Args:
        batch: Plans per move.
        spread: Standard deviation of the first draws, as a share of an action's range.
        finalists: See ``Agent``.
    """

    name = "cross-entropy"

    def __init__(
        self, *, batch: int = 10, spread: float = 0.25, finalists: int = DEFAULT_FINALISTS
    ) -> None:
        super().__init__(finalists=finalists)
        if batch < 1 or not spread > 0.0:
            raise ValueError(f"Expected batch >= 1 and spread > 0, got {batch} and {spread}.")
        self.batch = batch
        self.spread = spread

    def run(self, search: Search) -> None:
        """Spends the evaluations; ``search.rng`` is the one source of chance."""
        search.uniform()  # so that the result is never below the uniform plan
        n = search.env.n_decisions
        mean, spread = np.full(n, 0.5), np.full(n, self.spread)
        while search.remaining:
            size = (min(self.batch, search.remaining), n)
            actions = np.clip(search.rng.normal(mean, spread, size), 0.0, 1.0)
            rewards = []
            for row in actions:
                steps = iter(row)
                trial = search.play(lambda observation, info: [next(steps)], "draw")  # noqa: B023
                rewards.append(trial.reward)
            elite = actions[np.argsort(rewards)[-max(2, len(rewards) // 5) :]]
            mean, spread = elite.mean(axis=0), elite.std(axis=0) + 0.02
