"""Evaluation of plans and the episode loop, the same for every agent."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from amc_compress.agents.determinism import isolated_randomness
from amc_compress.agents.trials import AgentError, OnTrial, Trial
from amc_env import CompressionEnv, CompressionPlan, Evaluation, EvaluationError, Outcome
from amc_env.scores.stages import ROUNDING
from amc_env.support.closing import Closing
from amc_env.support.progress import Progress

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger

Act = Callable[[npt.NDArray[np.float32], dict[str, Any]], Any]
"""Observation and the last info -> action, shape ``(1,)``, in [0, 1]."""


@dataclass(frozen=True)
class _Asked:
    """A plan under way."""

    plan: CompressionPlan
    source: str
    scalars: Mapping[str, float]
    needed: bool = False


class Search(Closing):
    """A running search: evaluates, counts, records and reports.

    Args:
        env: The decision problem.
        episodes: How many evaluations may be spent; one in stages counts with its share.
        seed: Seeds :attr:`rng`.
        on_trial: Called with every trial.
        logger: Writes every trial to TensorBoard.
        progress: Whether to show a progress bar.
        prior: Trials within the budget that another search evaluated.
        parallel: How many plans may be under way at a time; part of the search, as what the agent
            knows when it proposes a plan depends on it.

    Attributes:
        rng: The one generator of the agent's own randomness.
        trials: Everything evaluated so far.
        best: The best trial within the budget so far, those of ``prior`` included (the earlier one
            among equals), None before the first.
    """

    def __init__(
        self,
        env: CompressionEnv,
        episodes: int,
        seed: int,
        on_trial: OnTrial | None = None,
        logger: EpisodeLogger | None = None,
        progress: bool = False,
        prior: Sequence[Trial] = (),
        parallel: int = 1,
    ) -> None:
        self.env = env
        self.parallel = parallel
        self._pending: deque[_Asked] = deque()
        self.prior = tuple(prior)
        self.evaluations = episodes
        self._spent = 0.0
        self.seed = seed
        self.rng = np.random.default_rng(seed)
        self.trials: list[Trial] = []
        self.best: Trial | None = max(self.prior, key=lambda trial: trial.reward, default=None)
        self._on_trial = on_trial
        self._logger = logger
        self._progress = Progress(episodes, "search", shown=progress)
        self._clock = time.perf_counter()

    def close(self) -> None:
        """Ends the progress bar, and forgets what is under way."""
        self._progress.close()
        self.env.scores.cancel()

    @property
    def remaining(self) -> int:
        """How many evaluations are left; those under way are spent."""
        return math.floor(self.evaluations - self._spent - len(self._pending) + ROUNDING)

    @property
    def episodes(self) -> int:
        """How many trials there will be; in stages at least, as more follow where plans stop."""
        return len(self.trials) + len(self._pending) + self.remaining

    @property
    def is_staged(self) -> bool:
        """Whether plans are evaluated in stages, so that a trial may cost less than one."""
        return self.env.scores.service.stages is not None

    @property
    def most_episodes(self) -> int:
        """How many trials there can be."""
        stages = self.env.scores.service.stages
        if stages is None:
            return self.episodes
        return len(self.trials) + math.ceil(self.evaluations / stages.shares[0])

    @property
    def pending(self) -> tuple[CompressionPlan, ...]:
        """The plans under way, in the order of submission."""
        return tuple(asked.plan for asked in self._pending)

    @property
    def has_room(self) -> bool:
        """Whether another plan may be submitted now."""
        return self.remaining > 0 and len(self._pending) < self.parallel

    @property
    def is_over(self) -> bool:
        """Whether every evaluation is spent and every result told."""
        return not self._pending and self.remaining < 1

    @property
    def known(self) -> list[Trial]:
        """Trials within the budget: those of earlier searches, then those of this one."""
        return [*self.prior, *(trial for trial in self.trials if trial.within_budget)]

    @property
    def whole(self) -> list[Trial]:
        """Of :attr:`known` those that were evaluated on all samples: one of them is the result."""
        return [trial for trial in self.known if trial.is_whole]

    def find(self, plan: CompressionPlan) -> Trial | None:
        """Returns what is known about a plan, or another one of its network; None if nothing is."""
        return self._find(self.env.canonical(plan))

    def _find(self, plan: CompressionPlan) -> Trial | None:
        return next((trial for trial in self.known if trial.plan == plan), None)

    def has_seen(self, plan: CompressionPlan) -> bool:
        """Whether a plan is known or under way: to propose it again would teach nothing."""
        plan = self.env.canonical(plan)
        return self._find(plan) is not None or plan in self.pending

    def uniform(self) -> Trial:
        """Returns the evaluation of the uniform plan, which is spent only where it is not known.

        Raises:
            AgentError: If no evaluation is left for it.
            EvaluationError: If it could not be evaluated: a search has nothing to begin with then.
        """
        if (known := self.find(self.env.uniform_plan())) is not None:
            return known
        self._check_alone()
        self.submit_uniform()
        return self.result()

    def submit_uniform(self) -> None:
        """Begins the evaluation of the uniform plan, where it is not known.

        Raises:
            AgentError: If no evaluation is left for it.
        """
        plan = self.env.uniform_plan()
        if self.find(plan) is None:
            self.submit(plan, "uniform")
            self._pending[-1] = replace(self._pending[-1], needed=True)

    def probe(self, plan: CompressionPlan, source: str = "probe") -> Trial:
        """Evaluates a plan that need not meet the budget; it counts like any other.

        Args:
            plan: Complete.
            source: Name of the proposer.

        Raises:
            AgentError: If it is no plan, no evaluation is left, or others are under way.
            PlanMismatchError: If the plan does not fit the network.
        """
        self._check_alone()
        self.submit(plan, source, probe=True)
        return self.result()

    def evaluate(
        self, plan: CompressionPlan, source: str, scalars: Mapping[str, float] | None = None
    ) -> Trial:
        """Evaluates a plan as a whole; a search method needs no steps.

        Args:
            plan: Complete and within the budget.
            source: Name of the proposer.
            scalars: Further numbers for the log.

        Raises:
            AgentError: If it is no plan, breaks the budget, no evaluation is left, or others are
                under way.
            PlanMismatchError: If the plan does not fit the network.
        """
        self._check_alone()
        self.submit(plan, source, scalars)
        return self.result()

    def submit(
        self,
        plan: CompressionPlan,
        source: str,
        scalars: Mapping[str, float] | None = None,
        *,
        probe: bool = False,
    ) -> None:
        """Begins an evaluation, without waiting for it.

        An agent submits while :attr:`has_room` says so, and takes the oldest :meth:`result` when
        it does not, until the search :attr:`is_over`. Whatever evaluates then has always
        ``parallel`` plans to work on, and the agent sees the same results in the same order.

        Args:
            plan: Complete, and within the budget.
            source: Name of the proposer.
            scalars: Further numbers for the log.
            probe: Whether it need not meet the budget.

        Raises:
            AgentError: If it is no plan, breaks the budget, or no evaluation is left.
            PlanMismatchError: If the plan does not fit the network.
        """
        _check_plan(plan)
        if not probe and not self.env.budget.is_met(ratio := self.env.cost_ratio(plan)):
            raise AgentError(
                f"The agent proposed a plan outside the budget {self.env.budget}: it costs "
                f"{ratio}. Take plans from env.project or env.decode."
            )
        if self.remaining < 1:
            raise AgentError(f"The agent asked for more than its {self.evaluations} evaluations.")
        self.env.submit([plan])
        self._pending.append(_Asked(self.env.canonical(plan), source, scalars or {}))

    def result(self) -> Trial:
        """Waits for the oldest plan under way, and records it.

        Raises:
            AgentError: If none is under way, or its evaluation is no finite number.
            EvaluationError: If it is the uniform plan, and could not be evaluated.
        """
        if not self._pending:
            raise AgentError("The agent asked for a result, and no plan is under way.")
        asked = self._pending.popleft()
        with isolated_randomness():
            outcome = self.env.evaluate(asked.plan)
        trial = self.record(outcome, asked.source, asked.scalars)
        if asked.needed and trial.failure:
            raise EvaluationError(f"The uniform plan could not be evaluated. {trial.failure}")
        return trial

    def results(self) -> list[Trial]:
        """Waits for every plan under way, in the order of submission."""
        return [self.result() for _ in range(len(self._pending))]

    def wait_for_room(self) -> list[Trial]:
        """Waits until another plan may be submitted; returns the results that came meanwhile."""
        found = []
        while self._pending and not self.has_room:
            found.append(self.result())
        return found

    def _check_alone(self) -> None:
        if self._pending:
            raise AgentError(
                f"The agent asked for an evaluation while {len(self._pending)} are under way; take "
                "their results first."
            )

    def play(self, act: Act, source: str) -> Trial:
        """Plays one episode step by step.

        Args:
            act: The policy.
            source: Name of the proposer.

        Raises:
            AgentError: If an action has another shape, leaves [0, 1] or is NaN.
        """
        observation, info = self.env.reset()
        while True:
            action = checked_action(act(observation, info))
            with isolated_randomness():
                observation, _, terminated, _, info = self.env.step(action)
            if terminated:
                return self.record(self.env.evaluate(CompressionPlan(info["plan"])), source)

    def record(
        self, outcome: Outcome, source: str, scalars: Mapping[str, float] | None = None
    ) -> Trial:
        """Records an evaluated plan.

        Raises:
            AgentError: If the evaluation is no finite number, or none is left.
        """
        if self.remaining < 1:
            raise AgentError(f"The agent asked for more than its {self.evaluations} evaluations.")
        if not (math.isfinite(outcome.score) and math.isfinite(outcome.reward)):
            raise AgentError(
                f"Expected a finite score and reward, got {outcome.score} and "
                f"{outcome.reward} in episode {len(self.trials)}; check the network's weights, "
                f"the data and the reward function."
            )
        now = time.perf_counter()
        trial = Trial(
            episode=len(self.trials),
            plan=outcome.plan,
            score=outcome.score,
            reward=outcome.reward,
            cost_ratio=dict(outcome.cost_ratio),
            seconds=now - self._clock,
            source=source,
            within_budget=outcome.feasible,
            **({} if outcome.evaluation is None else told_by(outcome.evaluation)),
        )
        self._clock = now
        self.trials.append(trial)
        before, self._spent = self._spent, self._spent + trial.share
        may_win = trial.within_budget and trial.is_whole
        if may_win and (self.best is None or trial.reward > self.best.reward):
            self.best = trial
        if trial.measured is not None:
            scalars = {"stages/spent": self._spent, **(scalars or {})}
        self._report(trial, scalars or {}, int(self._spent + ROUNDING) - int(before + ROUNDING))
        return trial

    def _report(self, trial: Trial, scalars: Mapping[str, float], steps: int) -> None:
        if self._on_trial is not None:
            self._on_trial(trial)
        if self._logger is not None:
            self._logger.log(trial, self.best, scalars)
        form = self.env.metric.reward_form
        best = "-" if self.best is None else f"{self.best.reward:{form}}"
        for _ in range(steps):
            self._progress.step(f"best {best}, last {trial.reward:{form}}")


def told_by(evaluation: Evaluation) -> dict[str, Any]:
    """What the service says of an evaluation besides its score."""
    return {
        "failure": evaluation.failure,
        "processor": evaluation.processor,
        "elsewhere": evaluation.cpu_seconds,
        "measured": evaluation.measured,
    }


def _check_plan(plan: object) -> None:
    if not isinstance(plan, CompressionPlan):
        raise AgentError(
            f"Expected a CompressionPlan from the agent, got {plan!r}. Take plans from "
            f"env.project, env.decode or CompressionPlan.from_values."
        )


def checked_action(action: Any, size: int = 1) -> npt.NDArray[np.float32]:
    """Returns the action as the environment wants it.

    Raises:
        AgentError: If it is not ``size`` numbers in [0, 1], shape ``(size,)``; NaN is none.
    """
    try:
        array = np.asarray(action, dtype=np.float32)
    except (TypeError, ValueError):
        array = np.empty(0, dtype=np.float32)
    if array.shape != (size,) or not bool(((array >= 0.0) & (array <= 1.0)).all()):
        raise AgentError(
            f"Expected an action of shape ({size},) in [0, 1] from the agent, got {action!r}."
        )
    return array
