"""Base class of agents: interface, record of a search, final evaluation."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import fields, is_dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import gymnasium as gym

from amc_compress.agents.trials import (
    AgentError,
    OnTrial,
    SearchResult,
    SearchStopped,
    Trial,
    best_distinct,
)
from amc_env import ArgumentError, CompressionEnv, CompressionError, EvaluationError
from amc_env.validation.checks import check_constructor, checked

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger
    from amc_compress.agents.rollout import Search

DEFAULT_FINALISTS = 5


class Agent(ABC):
    """Base class of search agents.

    A subclass names itself and implements :meth:`run`; seeding, recording, logging, progress and
    the final evaluation are done here, the same way for all agents.

    Everything an agent does follows from the seed and the evaluations, so a search that was killed
    is resumed by starting it again with the old evaluations preloaded (``env.remember``): it
    replays to where it was, at the price of the agent's own updates only.

    Args:
        finalists: How many of the best distinct trials are evaluated again on the whole validation
            split at the end, where the learner offers ``evaluate_full``; the maximum over hundreds
            of noisy evaluations is optimistic. 0 trusts the proxy.
    """

    name: str

    deterministic: ClassVar[bool] = False
    """Whether every seed gives the same trials, if equal plans are evaluated equally."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Makes the constructor of every agent check its arguments against its annotations."""
        super().__init_subclass__(**options)
        check_constructor(cls)

    @checked
    def __init__(self, *, finalists: int = DEFAULT_FINALISTS) -> None:
        if finalists < 0:
            raise ValueError(f"Expected finalists >= 0, got {finalists}.")
        self.finalists = finalists

    @abstractmethod
    def run(self, search: Search) -> None:
        """Spends up to ``search.episodes`` evaluations through ``search``."""

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
        parallel: int = 1,
    ) -> SearchResult:
        """Searches for the best plan.

        Args:
            env: A ``CompressionEnv``, bare or as ``gymnasium.make`` wraps it.
            episodes: Upper bound on the number of evaluated plans; where ``env`` evaluates in
                stages, on evaluations with all samples: of a plan that was stopped counts the share
                of the samples that it was evaluated on, and there are more plans.
            seed: The same seed gives the same trials, bit for bit.
            warm_start: Trials of another search on the same task, the ``trials`` of its result for
                example. They are known from the start (a replay buffer holds them, a sampler has
                seen them, a climb begins at the best one) and cost no evaluation; the best of them
                is the result if nothing better is found. A plan that the budget of this environment
                forbids is passed over.
            on_trial: Called with every trial as soon as it is evaluated; ends the search by
                raising ``SearchStopped``.
            logger: Writes every trial to TensorBoard.
            progress: Whether to show a progress bar on stderr.
            parallel: How many plans are proposed before the result of the first is awaited. It is
                part of the search, as the seed is; how many workers evaluate them is not (see
                ``CompressionEnv``'s ``evaluations``).

        Returns:
            The best plan and the record of the search.

        Raises:
            ValueError: If ``episodes`` or ``parallel`` is not positive.
            TypeError: If ``env`` is no compression environment.
            PlanMismatchError: If a plan of ``warm_start`` is one of another network.
            AgentError: If the agent proposes something unusable, e.g. NaN.
            EvaluationError: If the learner or the reward function does.
        """
        from amc_compress.agents.rollout import Search

        bare = unwrap(env)
        if episodes < 1:
            raise ArgumentError(f"Expected episodes to be a positive whole number, got {episodes}.")
        if parallel < 1:
            raise ArgumentError(f"Expected parallel to be a positive whole number, got {parallel}.")
        started, cpu_started = time.perf_counter(), time.process_time()
        if logger is not None:
            logger.start(bare, self.name, self.hyperparameters() | {"seed": seed})
        prior = usable_trials(bare, warm_start)
        with (
            Search(bare, episodes, seed, on_trial, logger, progress, prior, parallel) as search,
            contextlib.suppress(SearchStopped),
        ):
            self.run(search)
        if search.best is None:
            raise _nothing_found(self.name, search.trials)
        finalist_rewards, best = _final_evaluation(bare, search.whole, self.finalists)
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
            finalist_rewards=finalist_rewards,
            prior=prior,
        )


def _nothing_found(agent: str, trials: Sequence[Trial]) -> CompressionError:
    """Returns why a search ends without a plan."""
    failed = [trial.failure for trial in trials if trial.failure]
    if failed and len(failed) == len(trials):
        return EvaluationError(
            f"Expected a plan that can be evaluated, but none of {len(failed)} could be. The last "
            f"one: {failed[-1]}"
        )
    return AgentError(f"The agent {agent!r} proposed no plan within the budget.")


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


def usable_trials(env: CompressionEnv, trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Returns the trials that the budget allows, with the reward of this environment.

    They come before the search's own episodes, so theirs end at -1.
    """
    usable = []
    for trial in trials:
        env.remember(trial.plan, trial.score, trial.failure)
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


def _final_evaluation(
    env: CompressionEnv, trials: Sequence[Trial], count: int
) -> tuple[dict[int, float], Trial]:
    """Evaluates the best few again on the whole validation split, against selection bias."""
    finalists = best_distinct(trials, max(1, count))
    if count == 0 or not hasattr(env.learner, "evaluate_full"):
        return {}, finalists[0]
    answers = env.scores.service.on_whole_split([trial.plan for trial in finalists])
    evaluated: list[Trial] = []
    for trial, answer in zip(finalists, answers, strict=True):
        if answer.score is not None:
            outcome = env.outcome(trial.plan, answer.score)
            evaluated.append(replace(trial, score=outcome.score, reward=outcome.reward))
    best = max(evaluated or finalists, key=lambda trial: (trial.reward, -trial.episode))
    return {trial.episode: trial.reward for trial in evaluated}, best
