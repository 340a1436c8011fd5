"""Regularised evolution over plans."""

from __future__ import annotations

from collections import deque

import numpy as np

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.heuristics.local_search import neighbour
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import Trial, best_distinct
from amc_env import CompressionPlan
from amc_env.one_shot import positions, rescale

_MAX_TRIES = 50


class Evolution(Agent):
    """Ageing evolution (Real et al. 2019, algorithm 1) with crossover.

    The best of a few plans drawn from the population is changed as :class:`LocalSearch` changes
    plans, or crossed with another one before; the child joins the population and the oldest member
    leaves it. The first generation holds what is known, the uniform plan and changes of it.
    In parallel, so many children are under way; each has the parents that were there when it began.

    Args:
        population: Members.
        tournament: How many of them are drawn.
        crossover: Probability that a child has two parents.
        max_step: Largest change of a decision, as a share of its grid.
        finalists: See :class:`Agent`.
    """

    name = "evolution"

    def __init__(
        self,
        *,
        population: int = 20,
        tournament: int = 5,
        crossover: float = 0.3,
        max_step: float = 0.35,
        finalists: int = DEFAULT_FINALISTS,
    ) -> None:
        super().__init__(finalists=finalists)
        if not 1 <= tournament <= population:
            raise ValueError(
                f"Expected 1 <= tournament <= population, got {tournament} and {population}."
            )
        if not 0.0 <= crossover <= 1.0 or not 0.0 < max_step <= 1.0:
            raise ValueError("Expected crossover in [0, 1] and max_step in (0, 1].")
        self.population = population
        self.tournament = tournament
        self.crossover = crossover
        self.max_step = max_step

    def run(self, search: Search) -> None:  # noqa: D102
        uniform = search.uniform()
        start = best_distinct(search.known, max(1, self.population // 2))
        members = deque(start, maxlen=self.population)
        size = min(self.population, max(2, search.episodes // 4))
        while not search.is_over:
            while search.has_room:
                born = len(members) + len(search.pending)
                parent = uniform if born < size else self._winner(search, members)
                search.submit(self._new(search, parent, members), "evolution")
            members.append(search.result())

    def _winner(self, search: Search, members: deque[Trial]) -> Trial:
        count = min(self.tournament, len(members))
        drawn = search.rng.choice(len(members), size=count, replace=False)
        return max((members[int(i)] for i in drawn), key=lambda trial: trial.reward)

    def _new(self, search: Search, parent: Trial, members: deque[Trial]) -> CompressionPlan:
        """A child that was not evaluated before, if one is found."""
        for _ in range(_MAX_TRIES):
            plan = parent.plan
            if search.rng.random() < self.crossover:
                plan = self._cross(search, plan, self._winner(search, members).plan)
            plan = neighbour(search.env, plan, search.rng, self.max_step)
            if not search.has_seen(plan):
                break
        return plan

    def _cross(
        self, search: Search, one: CompressionPlan, other: CompressionPlan
    ) -> CompressionPlan:
        """Each decision from either parent; the whole is rescaled to the budget."""
        env = search.env
        requests = np.where(
            search.rng.random(env.n_decisions) < 0.5, positions(env, one), positions(env, other)
        )
        return rescale(env, requests)
