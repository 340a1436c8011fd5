"""What every agent shares: the interface, the record of a search, and how a search ends."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym

from amc_env import ArgumentError, CompressionEnv, CompressionPlan, EvaluationError
from amc_env.checks import check_constructor, checked

if TYPE_CHECKING:
    from agents.logging import EpisodeLogger
    from agents.rollout import Search

DEFAULT_REJUDGE = 5


class AgentError(EvaluationError):
    """An agent, or what evaluates its plans, answered something unusable."""


@dataclass(frozen=True)
class Trial:
    """One judged plan.

    Args:
        episode: Counted from 0.
        plan: The complete plan.
        accuracy: Its proxy accuracy, in [0, 1].
        reward: What the environment's reward function made of it.
        cost_ratio: Cost name -> cost / original cost.
        seconds: Wall time since the previous trial (the agent's own work included).
        source: Who proposed it, e.g. ``"uniform"``, ``"warm-up"``, ``"policy"``, ``"elite"``.
        within_budget: Whether it may win. Some agents judge plans outside the budget to learn what
            single decisions cost; these count like all others, and never win.
    """

    episode: int
    plan: CompressionPlan
    accuracy: float
    reward: float
    cost_ratio: dict[str, float]
    seconds: float
    source: str
    within_budget: bool = True


@dataclass(frozen=True)
class SearchResult:
    """What a search found and what it cost.

    Args:
        plan: The best plan, judged by this search or known to it from its warm start.
        reward: Its reward; from the full validation split if the plans were re-judged there.
        trials: Every judged plan, in order.
        seconds: Wall time of the search.
        cpu_seconds: Processor time of the search.
        agent: Name of the agent.
        seed: Seed of the search.
        rejudged: Episode -> reward on the full validation split, of the best few trials; empty
            if the learner has no ``evaluate_full``.
        prior: The usable trials of the warm start; their episodes are negative.
    """

    plan: CompressionPlan
    reward: float
    trials: tuple[Trial, ...]
    seconds: float
    cpu_seconds: float
    agent: str
    seed: int
    rejudged: Mapping[int, float]
    prior: tuple[Trial, ...] = ()

    @property
    def best_trial(self) -> Trial:
        """The trial that proposed :attr:`plan` first."""
        known = (*self.prior, *self.trials)
        return next(trial for trial in known if trial.plan == self.plan)


OnTrial = Callable[[Trial], None]


class Agent(ABC):
    """Whoever chooses plans: learning, searching or hand-made.

    A subclass names itself and implements :meth:`run`; seeding, recording, logging, progress and
    the final judgement are done here, the same way for everybody.

    Everything an agent does follows from the seed and the judgements, so a search that was killed
    is resumed by starting it again with the old judgements preloaded (``env.remember``): it
    replays to where it was, at the price of the agent's own updates only.

    Args:
        rejudge: How many of the best distinct trials are judged again on the whole validation
            split at the end, where the learner offers ``evaluate_full``; the maximum over hundreds
            of noisy judgements is optimistic. 0 trusts the proxy.
    """

    name: str

    deterministic: ClassVar[bool] = False
    """Whether every seed gives the same trials, if equal plans are judged equally."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Lets the constructor of every agent check its arguments by its annotations."""
        super().__init_subclass__(**options)
        check_constructor(cls)

    @checked
    def __init__(self, *, rejudge: int = DEFAULT_REJUDGE) -> None:
        if rejudge < 0:
            raise ValueError(f"Expected rejudge >= 0, got {rejudge}.")
        self.rejudge = rejudge

    @abstractmethod
    def run(self, search: Search) -> None:
        """Spends up to ``search.episodes`` judgements through ``search``."""

    def hyperparameters(self) -> dict[str, Any]:
        """Returns the agent's settings as plain values, for the log."""
        settings: dict[str, Any] = {}
        for key, value in vars(self).items():
            if not key.startswith("_"):
                settings |= _flat(key, value)
        return settings

    @checked
    def search(
        self,
        env: gym.Env[Any, Any],
        episodes: int,
        seed: int,
        *,
        warm_start: Sequence[Trial] = (),
        on_trial: OnTrial | None = None,
        logger: EpisodeLogger | None = None,
        progress: bool = False,
    ) -> SearchResult:
        """Searches for the best plan.

        Args:
            env: A ``CompressionEnv``, bare or as ``gymnasium.make`` wraps it.
            episodes: Upper bound on the number of judged plans.
            seed: The same seed gives the same trials, bit for bit.
            warm_start: Trials of another search on the same task, the ``trials`` of its result for
                example. They are known from the start (a replay buffer holds them, a sampler has
                seen them, a climb begins at the best one) and cost no judgement; the best of them
                is the result if nothing better is found. A plan that the budget of this environment
                forbids is passed over.
            on_trial: Called with every trial as soon as it is judged.
            logger: Writes every trial to TensorBoard.
            progress: Whether to show a progress bar on stderr.

        Returns:
            The best plan and the record of the search.

        Raises:
            ValueError: If ``episodes`` is not positive.
            TypeError: If ``env`` is no compression environment.
            PlanMismatchError: If a plan of ``warm_start`` is one of another network.
            AgentError: If the agent proposes something unusable, e.g. NaN.
            EvaluationError: If the learner or the reward function does.
        """
        from agents.rollout import Search

        bare = unwrap(env)
        if episodes < 1:
            raise ArgumentError(f"Expected episodes to be a positive whole number, got {episodes}.")
        started, cpu_started = time.perf_counter(), time.process_time()
        if logger is not None:
            logger.start(bare, self.name, self.hyperparameters() | {"seed": seed})
        prior = _usable(bare, warm_start)
        with Search(bare, episodes, seed, on_trial, logger, progress, prior) as search:
            self.run(search)
        if search.best is None:
            raise AgentError(f"The agent {self.name!r} proposed no plan within the budget.")
        rejudged, best = _final_judgement(bare, search.known, self.rejudge)
        if logger is not None:
            logger.finish(best)
        return SearchResult(
            plan=best.plan,
            reward=best.reward,
            trials=tuple(search.trials),
            seconds=time.perf_counter() - started,
            cpu_seconds=time.process_time() - cpu_started,
            agent=self.name,
            seed=seed,
            rejudged=rejudged,
            prior=prior,
        )


def _flat(key: str, value: object) -> dict[str, Any]:
    """Fields of nested records side by side; anything else under its own name."""
    if is_dataclass(value) and not isinstance(value, type):
        parts = [_flat(f.name, getattr(value, f.name)) for f in fields(value)]
        return {name: inner for part in parts for name, inner in part.items()}
    return {key: value}


def unwrap(env: gym.Env[Any, Any]) -> CompressionEnv:
    """Returns the environment inside what ``gymnasium.make`` made.

    Raises:
        TypeError: If it is no compression environment.
    """
    bare = getattr(env, "unwrapped", env)
    if not isinstance(bare, CompressionEnv):
        raise TypeError(
            f"Expected a CompressionEnv (bare or from gymnasium.make), got {type(bare).__name__}."
        )
    return bare


def _usable(env: CompressionEnv, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """The trials that the budget allows, with the reward of this environment.

    They come before the search's own episodes, so theirs end at -1.
    """
    usable = []
    for trial in trials:
        env.remember(trial.plan, trial.accuracy)
        outcome = env.evaluate(trial.plan)
        if outcome.feasible:
            usable.append((trial, outcome))
    return tuple(
        replace(
            trial,
            episode=i - len(usable),
            reward=outcome.reward,
            cost_ratio=dict(outcome.cost_ratio),
            within_budget=True,
        )
        for i, (trial, outcome) in enumerate(usable)
    )


def best_distinct(trials: Sequence[Trial], count: int) -> list[Trial]:
    """Returns the best ``count`` trials within the budget with different plans.

    Of equally good ones the earlier comes first.
    """
    first: dict[CompressionPlan, Trial] = {}
    for trial in trials:
        if trial.within_budget:
            first.setdefault(trial.plan, trial)
    # A stable sort: trials come in the order in which they were judged.
    return sorted(first.values(), key=lambda trial: -trial.reward)[:count]


def _final_judgement(
    env: CompressionEnv, trials: Sequence[Trial], count: int
) -> tuple[dict[int, float], Trial]:
    """Judges the best few again on the whole validation split, against selection bias."""
    finalists = best_distinct(trials, max(1, count))
    judge = getattr(env.learner, "evaluate_full", None)
    if judge is None or count == 0:
        return {}, finalists[0]
    judged: list[Trial] = []
    for trial in finalists:
        outcome = env.outcome(trial.plan, float(judge(trial.plan)))
        judged.append(replace(trial, accuracy=outcome.accuracy, reward=outcome.reward))
    best = max(judged, key=lambda trial: (trial.reward, -trial.episode))
    return {trial.episode: trial.reward for trial in judged}, best
