"""(1 + lambda) evolution by level switches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.heuristics.local_search import (
    fits,
    lower_until_it_fits,
    raise_while_it_fits,
)
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import Trial
from amc_env import CompressionEnv, CompressionPlan

_MAX_TRIES = 60
_TRIES_PER_SWITCH = 10
"""After so many offspring that were seen before, the next ones get one more switch."""


class EvoPress(Agent):
    """(1 + lambda) evolution by level switches (Sieberling et al. 2024, EvoPress, algorithm 1).

    Every offspring is the parent with a few level switches (see :func:`switched`). Of parent and
    offspring the best one is the next parent, an offspring where they are equal. It begins at the
    best plan known, the uniform one without a warm start. No plan is evaluated twice: where all
    that a few switches lead to was seen, more are made, and where these find nothing new either,
    the search ends early. In parallel, so many offspring are under way; those that begin before
    a generation is complete have the parent of the one before.

    The paper selects in stages: it evaluates all offspring on few samples and the survivors on
    more. An environment that evaluates in stages (``amc search --staged``) does so for it: an
    offspring is evaluated on more samples while it may still beat the best plan, and stopped by a
    test where the paper keeps fixed numbers. Otherwise every evaluation is one on all samples, so
    that lambda is smaller than the paper's 16 to 128.

    Args:
        offspring: Per generation, the paper's lambda.
        switches: Of an offspring at most; the number is the smaller one of two draws from 1 to
            this, 3 in the paper.
        finalists: See :class:`Agent`.
    """

    name = "evopress"

    def __init__(
        self, *, offspring: int = 4, switches: int = 3, finalists: int = DEFAULT_FINALISTS
    ) -> None:
        super().__init__(finalists=finalists)
        if offspring < 1 or switches < 1:
            raise ValueError(
                f"Expected offspring >= 1 and switches >= 1, got {offspring} and {switches}."
            )
        self.offspring = offspring
        self.switches = switches

    def run(self, search: Search) -> None:  # noqa: D102
        search.uniform()
        parent = max(search.known, key=lambda trial: trial.reward)
        seen = {trial.plan for trial in search.known}
        generation: list[Trial] = []
        while True:
            while search.has_room and (plan := self._unseen(search, parent.plan, seen)) is not None:
                seen.add(plan)
                search.submit(plan, self.name)
            if not search.pending:
                return
            generation.append(search.result())
            if len(generation) == self.offspring:
                parent = _fittest(parent, generation)
                generation = []

    def _unseen(
        self, search: Search, parent: CompressionPlan, seen: set[CompressionPlan]
    ) -> CompressionPlan | None:
        """An offspring that was never proposed; None if none is found."""
        for tries in range(_MAX_TRIES):
            drawn = int(search.rng.integers(1, self.switches + 1, size=2).min())
            count = drawn + tries // _TRIES_PER_SWITCH
            plan = switched(search.env, parent, search.rng, count)
            if plan not in seen:
                return plan
        return None


def _fittest(parent: Trial, generation: Sequence[Trial]) -> Trial:
    """The best of all; an offspring as good as its parent replaces it, the earliest of equals."""
    feasible = [trial for trial in generation if trial.within_budget]
    return max([*feasible, parent], key=lambda trial: trial.reward)


def switched(
    env: CompressionEnv, plan: CompressionPlan, rng: np.random.Generator, count: int
) -> CompressionPlan:
    """Returns a feasible plan that is ``count`` level switches from ``plan``.

    A switch raises one decision by a level and lowers another one by a level, or by as many as
    pay for it; what the lowered one pays too much raises the first one further. The paper
    switches between layers of one size, where a level is worth a level. Of several budgets the
    payer must meet all; where none can alone, decisions pay in turn. What room is left in the end
    goes to decisions that did not pay, and the environment's projection has the last word.

    Args:
        env: The decision problem.
        plan: Where to start.
        rng: Draws everything.
        count: Number of switches.
    """
    grids = [decision.choices for decision in env.decisions]
    values = plan.values_for(env.decisions)
    index = [grid.index(value) for grid, value in zip(grids, values, strict=True)]
    paid: set[int] = set()
    for _ in range(count):
        order = [int(i) for i in rng.permutation(len(grids))]
        raised = next((i for i in order if index[i] + 1 < len(grids[i])), None)
        payers = [i for i in order if i != raised and index[i] > 0]
        if raised is None or not payers:
            break
        index[raised] += 1
        index = _paid(env, index, payers)
        raise_while_it_fits(env, index, [raised])
        paid |= {i for i in payers if grids[i][index[i]] < values[i]}
    rest = [int(i) for i in rng.permutation(len(grids)) if i not in paid]
    raise_while_it_fits(env, index, rest)
    return env.project([grid[i] for grid, i in zip(grids, index, strict=True)])


def _paid(env: CompressionEnv, index: list[int], payers: Sequence[int]) -> list[int]:
    """The first one of the payers that can meets the bounds alone, all of them in turn if none."""
    for payer in payers:
        attempt = list(index)
        attempt[payer] -= 1
        lower_until_it_fits(env, attempt, [payer])
        if fits(env, attempt):
            return attempt
    attempt = list(index)
    lower_until_it_fits(env, attempt, list(payers))
    return attempt
