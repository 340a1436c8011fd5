"""Hill climbing on the grid of plans, and the neighbourhood it uses."""

from __future__ import annotations

import numpy as np

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.rollout import Search
from amc_env import CompressionEnv, CompressionPlan

_MAX_TRIES = 50


class LocalSearch(Agent):
    """(1+1) hill climbing from the best plan known, the uniform one without a warm start.

    Each episode changes one or two decisions of the best plan by a few grid steps, repairs the
    budget with other decisions (see :func:`neighbour`) and keeps the result if it is better or
    equal. No plan is evaluated twice: where all neighbours that are drawn were seen before,
    neighbours of neighbours are, and where these find nothing new either, the search ends early. In
    parallel, so many neighbours of it are under way.

    Args:
        max_step: Largest change of a decision, as a share of its grid.
        finalists: See :class:`Agent`.
    """

    name = "local"

    def __init__(self, *, max_step: float = 0.35, finalists: int = DEFAULT_FINALISTS) -> None:
        super().__init__(finalists=finalists)
        if not 0.0 < max_step <= 1.0:
            raise ValueError(f"Expected 0 < max_step <= 1, got {max_step}.")
        self.max_step = max_step

    def run(self, search: Search) -> None:  # noqa: D102
        search.uniform()
        current = max(search.known, key=lambda trial: trial.reward)
        seen = {trial.plan for trial in search.known}
        while True:
            while (
                search.has_room and (plan := self._unseen(search, current.plan, seen)) is not None
            ):
                seen.add(plan)
                search.submit(plan, "local")
            if not search.pending:
                return
            trial = search.result()
            if trial.within_budget and trial.reward >= current.reward:
                current = trial

    def _unseen(
        self, search: Search, plan: CompressionPlan, seen: set[CompressionPlan]
    ) -> CompressionPlan | None:
        """A plan near another one that was never proposed; None if none is found."""
        near = plan
        for tried in range(2 * _MAX_TRIES):
            origin = plan if tried < _MAX_TRIES else near
            near = neighbour(search.env, origin, search.rng, self.max_step)
            if near not in seen:
                return near
        return None


def neighbour(
    env: CompressionEnv, plan: CompressionPlan, rng: np.random.Generator, max_step: float
) -> CompressionPlan:
    """Returns a feasible plan near ``plan``.

    One or two decisions move by 1 to ``max_step`` x grid steps. Then the others, in random order
    and one grid step at a time, give way while the upper bounds are broken, and afterwards take
    what room is left, so that a cut somewhere pays for a gain elsewhere. The environment's
    projection has the last word.

    Args:
        env: The decision problem.
        plan: Where to start.
        rng: Draws everything.
        max_step: Largest move, as a share of a decision's grid.
    """
    grids = [decision.choices for decision in env.decisions]
    values = plan.values_for(env.decisions)
    index = [grid.index(value) for grid, value in zip(grids, values, strict=True)]
    count = min(len(grids), 1 + int(rng.integers(2)))
    moved = rng.choice(len(grids), size=count, replace=False)
    for i in moved:
        reach = max(1, round(max_step * len(grids[i])))
        step = int(rng.integers(1, reach + 1)) * int(rng.choice([-1, 1]))
        index[i] = min(len(grids[i]) - 1, max(0, index[i] + step))
    others = [i for i in rng.permutation(len(grids)) if i not in moved]
    lower_until_it_fits(env, index, others)
    raise_while_it_fits(env, index, others)
    return env.project([grid[i] for grid, i in zip(grids, index, strict=True)])


def fits(env: CompressionEnv, index: list[int]) -> bool:
    """Whether every upper bound holds; lower bounds are left to the projection."""
    ratio = env.cost_ratio(CompressionPlan.from_choices(env.decisions, index))
    return all(ratio[name] <= upper for name, (_, upper) in env.budget.bounds.items())


def lower_until_it_fits(env: CompressionEnv, index: list[int], order: list[int]) -> None:
    """Lowers decisions in turn, one level each, until every upper bound holds or all are lowest."""
    while not fits(env, index):
        lowerable = [i for i in order if index[i] > 0]
        if not lowerable:
            return
        index[lowerable[0]] -= 1
        # The next step is another decision's, so that no single one pays for everything.
        order.append(order.pop(order.index(lowerable[0])))


def raise_while_it_fits(env: CompressionEnv, index: list[int], order: list[int]) -> None:
    """Raises each decision, one after the other, as far as every upper bound still holds."""
    for i in order:
        while index[i] + 1 < len(env.decisions[i].choices):
            index[i] += 1
            if not fits(env, index):
                index[i] -= 1
                break
