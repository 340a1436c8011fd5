"""Results of a search: trials, the best of them, and the error of failing agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from amc_env import CompressionPlan, EvaluationError
from amc_env.scores.stages import Measured
from amc_env.support.deprecation import renamed_attribute

if TYPE_CHECKING:
    pass


class AgentError(EvaluationError):
    """An agent or a learner returned something unusable."""


class SearchStopped(Exception):  # noqa: N818  # it is no error
    """Raised by ``on_trial`` to end a search after that trial; the search returns what it has."""


@dataclass(frozen=True)
class Trial:
    """One evaluated plan.

    Args:
        episode: Counted from 0.
        plan: The complete plan.
        score: Its score, higher is better: its proxy accuracy, for a classifier.
        reward: What the environment's reward function made of it.
        cost_ratio: Cost name -> cost / original cost.
        seconds: Wall time since the previous trial (the agent's own work included).
        source: Who proposed it, e.g. ``"uniform"``, ``"warm-up"``, ``"policy"``, ``"elite"``.
        within_budget: Whether it may win. Some agents evaluate plans outside the budget to learn
            what single decisions cost; these count like all others, and never win.
        failure: Why it could not be evaluated; empty if it was. Its score is the worst then, and it
            is not within the budget.
        processor: What evaluated it, where that was not this process.
        elsewhere: Processor seconds of its evaluation there.
        measured: What a staged evaluation found; None where it was none.
    """

    episode: int
    plan: CompressionPlan
    score: float
    reward: float
    cost_ratio: dict[str, float]
    seconds: float
    source: str
    within_budget: bool = True
    failure: str = ""
    processor: str = ""
    elsewhere: float = 0.0
    measured: Measured | None = None

    @property
    def share(self) -> float:
        """Share of the samples that it was evaluated on: what it costs of a search's budget."""
        return 1.0 if self.measured is None else self.measured.share

    @property
    def is_whole(self) -> bool:
        """Whether it was evaluated on all samples."""
        return self.share == 1.0

    accuracy = renamed_attribute("accuracy", "score", removed_in="0.2")


@dataclass(frozen=True)
class SearchResult:
    """Result of a search.

    Args:
        plan: The best plan, evaluated by this search or known to it from its warm start.
        reward: Its reward; from the full validation split if the plans were re-evaluated there.
        trials: Every evaluated plan, in order.
        seconds: Wall time of the search.
        cpu_seconds: Processor time of the search.
        agent: Name of the agent.
        seed: Seed of the search.
        finalist_rewards: Episode -> reward on the full validation split, of the best few trials;
            empty if the learner has no ``evaluate_full``.
        prior: The usable trials of the warm start; their episodes are negative.
    """

    plan: CompressionPlan
    reward: float
    trials: tuple[Trial, ...]
    seconds: float
    cpu_seconds: float
    agent: str
    seed: int
    finalist_rewards: Mapping[int, float]
    prior: tuple[Trial, ...] = ()

    @property
    def best_trial(self) -> Trial:
        """The trial that proposed :attr:`plan` first."""
        known = (*self.prior, *self.trials)
        return next(trial for trial in known if trial.plan == self.plan)


OnTrial = Callable[[Trial], None]
"""Called with every trial; may raise :class:`SearchStopped`."""


def best_distinct(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns the best ``count`` trials within the budget with different plans.

    Of equally good ones the earlier comes first.
    """
    first: dict[CompressionPlan, Trial] = {}
    for trial in trials:
        if trial.within_budget:
            first.setdefault(trial.plan, trial)
    # A stable sort: trials come in the order in which they were evaluated.
    return sorted(first.values(), key=lambda trial: -trial.reward)[:count]
