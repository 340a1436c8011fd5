"""Searches on a surrogate whose plans are evaluated for real, so that its errors are found.

A surrogate fitted to a Latin hypercube is good where plans are ordinary. A search ends where it is
most optimistic, right or wrong. Evaluating the plans of such searches and fitting again takes the
wrong optimism away, round by round.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from amc_compress.agents import make_agent
from amc_compress.comparison.searches.plan_evaluation import Choices
from amc_env import CompressionEnv, CompressionPlan
from amc_env.recorded_tasks.recorded import RecordedLearner
from amc_env.recorded_tasks.recorded_file import RecordedTask

REFINING_SEEDS = 10_000
"""Where the seeds of refining searches begin, far from those that policies are evaluated over."""


@dataclass(frozen=True)
class Refinement:
    """Settings of the refinement of a surrogate by searches.

    Args:
        rounds: How often the surrogate is fitted, searched and corrected; 0 for never.
        searches: Searches of each round, each with a seed of its own.
        episodes: Episodes of each search.
        plans: How many plans of each search are evaluated: half of them its best, half of them
            drawn from all that it tried.
        agent: Name of the agent that searches.

    Raises:
        ValueError: If a number is out of range.
    """

    rounds: int = 4
    searches: int = 10
    episodes: int = 300
    plans: int = 25
    agent: str = "local"

    def __post_init__(self) -> None:
        if self.rounds < 0 or min(self.searches, self.episodes, self.plans) < 1:
            raise ValueError(f"Expected rounds >= 0 and the other numbers >= 1, got {self}.")


@dataclass(frozen=True)
class SurrogateSearch:
    """The plans that one search on a surrogate tried.

    Args:
        plans: Distinct plans, the one with the highest prediction first; choices' indices.
        predicted: Their predicted scores.
    """

    plans: Sequence[Choices]
    predicted: Sequence[float]


def search_surrogate(
    task: RecordedTask, budget: str, agent: str, episodes: int, seed: int
) -> SurrogateSearch:
    """Searches a recorded task with an agent.

    Args:
        task: The record.
        budget: The budget of the search.
        agent: Name of the agent.
        episodes: How many plans it may try.
        seed: Of the search.
    """
    env = CompressionEnv(RecordedLearner(task), budget)
    trials = make_agent(agent, finalists=0).search(env, episodes, seed).trials
    found: dict[CompressionPlan, float] = {t.plan: t.score for t in trials}
    ranked = sorted(found, key=lambda plan: -found[plan])
    return SurrogateSearch(
        [plan.choices_for(env.decisions) for plan in ranked], [found[plan] for plan in ranked]
    )


def sample(search: SurrogateSearch, n: int, rng: np.random.Generator) -> list[Choices]:
    """Returns the best plans of a search, and as many drawn from the others; ``n`` in all."""
    best = min(len(search.plans), (n + 1) // 2)
    others = rng.permutation(np.arange(best, len(search.plans)))[: n - best]
    return [search.plans[i] for i in (*range(best), *sorted(others))]
