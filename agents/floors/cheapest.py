"""The cheapest plan whose score is no lower than a floor.

The best score of the plans up to a cost never falls as the cost grows, so the cheapest plan is
found by bisection over budgets: an agent searches at one budget after the other, each time with all
trials so far as its warm start, and stops at the first plan that keeps the floor. What evaluations
are left go to a descent from the plan found: neighbours that are cheaper by a step, which grows
where the floor is kept and shrinks where it is not. ``docs/goals.md`` has the measurement by which
the two share the evaluations.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from amc_compress.agents.base import Agent, usable_trials
from amc_compress.agents.floors.descent import Descent, Step
from amc_compress.agents.rollout import told_by
from amc_compress.agents.trials import AgentError, OnTrial, SearchStopped, Trial
from amc_env import Budget, CompressionEnv, CompressionPlan, InfeasibleBudgetError, Outcome
from amc_env.budgets.budget import Bounds
from amc_env.validation.checks import checked

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger

_LEAST = 4
"""Evaluations of a level: fewer are no search."""

DESCENT = 0.4
"""Share of the evaluations that the bisection leaves to the descent."""

_MARGIN = 0.25
"""Of the interval, that no step leaves less of at either end."""

AfterLevel = Callable[[CompressionPlan], float]
"""A plan -> its score after what follows the search, a fine-tuning say."""


@dataclass(frozen=True)
class Level:
    """One budget on the way.

    Args:
        budget: The bounds it had.
        plan: The best plan found.
        score: Its score, before whatever follows the search.
        final_score: Its score afterwards; that of the search if nothing follows.
        cost_ratio: Its costs as shares of the original's.
        n_trials: Plans evaluated at this level.
        kept: Whether the floor was kept.
    """

    budget: str
    plan: CompressionPlan
    score: float
    final_score: float
    cost_ratio: Mapping[str, float]
    n_trials: int
    kept: bool


@dataclass(frozen=True)
class FloorResult:
    """Result of :class:`FloorSearch`.

    Args:
        plan: The cheapest plan found that keeps the floor.
        levels: The budgets that were tried, in order; the last one that was kept has the plan.
        trials: Every evaluated plan, in order.
    """

    plan: CompressionPlan
    levels: tuple[Level, ...]
    trials: tuple[Trial, ...]


@checked
@dataclass
class FloorSearch:
    """Searches for the cheapest plan whose score is at least ``floor``.

    Args:
        env: The decision problem; its budget holds throughout. The environment ends with it.
        make_agent: Builds the agent that searches at every level.
        evaluations: Plans that are evaluated, at most, in all levels together.
        seed: Of the searches; equal seeds give equal trials.
        floor: The least score.
        cost: Name of the cost to be made small.
        full_floor: The least score on the whole validation split, where the learner evaluates
            plans there; ``floor`` if None.
        tolerance: The search ends when budgets that can and cannot be kept are this near, as a
            share of the cost.
        levels: Most budgets that are tried.
        descent: Share of the evaluations for the descent; none where something follows a level.
        after: What follows a level; its score decides instead, and every level is searched to its
            end, because the best plan of a level is what has to keep the floor.
        warm_start: Trials of another search, as of :meth:`Agent.search`; the cheapest of them that
            keeps the floor is where the bisection begins.
        on_trial: As of :meth:`Agent.search`; the episodes count through all levels.
        logger: Writes every trial to TensorBoard.
        progress: Whether to show progress bars.
        parallel: How many plans are under way at a time, as of :meth:`Agent.search`.

    Attributes:
        trials: Every evaluated plan so far.
        tried: The levels so far.
        best: The cheapest level that kept the floor.
        failed: The dearest that did not.
        low: Cost that is known not to be kept.
        high: Cost of the best plan that is known.

    Raises:
        ValueError: If there is no such cost.
    """

    env: CompressionEnv
    make_agent: Callable[[], Agent]
    evaluations: int
    seed: int
    floor: float
    cost: str
    full_floor: float | None = None
    tolerance: float = 0.02
    levels: int = 12
    descent: float = DESCENT
    after: AfterLevel | None = None
    warm_start: Sequence[Trial] = ()
    on_trial: OnTrial | None = None
    logger: EpisodeLogger | None = None
    progress: bool = False
    parallel: int = 1

    trials: list[Trial] = field(init=False, default_factory=list)
    tried: list[Level] = field(init=False, default_factory=list)
    best: Level | None = field(init=False, default=None)
    failed: Level | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        if self.cost not in self.env.costs:
            raise ValueError(f"No cost named {self.cost!r}; available: {sorted(self.env.costs)}.")
        self.caps: Mapping[str, Bounds] = self.env.budget.bounds
        self.original = self.env.learner.original_score
        lower, self.high = self.caps.get(self.cost, (0.0, 1.0))
        lowest = CompressionPlan.from_values(
            self.env.decisions, [d.choices[0] for d in self.env.decisions]
        )
        self.low = self.lowest = max(self.env.cost_ratio(lowest)[self.cost], lower)
        # Where something follows a level, the floor is about what comes of it.
        full = self.full_floor if self.after is None else None
        self._least = self.floor if full is None else full
        # Nothing is spent on the bisection that the descent is to have.
        self._left = 0 if self.after is not None else int(self.descent * self.evaluations)
        self._known: tuple[Trial, ...] = ()
        self._stopped = False
        self._clock = time.perf_counter()

    def run(self) -> FloorResult:
        """Searches.

        Raises:
            InfeasibleBudgetError: If no plan within the environment's own budget keeps the floor,
                as far as found with a share of the evaluations.
        """
        caps = self.env.budget
        if self.logger is not None:
            settings = {"floor": self.floor, "cost": self.cost, "seed": self.seed}
            self.logger.start(self.env, f"cheapest plan, {self.make_agent().name}", settings)
        self._known = usable_trials(self.env, self.warm_start)
        try:
            self._first_level()
            while self.remaining - self._left >= _LEAST and len(self.tried) < self.levels:
                if self.high <= self.low * (1.0 + self.tolerance):
                    break
                self._level(self._next_bound(), self._left)
            if self._left:
                self._descend()
        except SearchStopped:
            if self.best is None:
                raise AgentError("The search was stopped before any plan kept the floor.") from None
        finally:
            self.env.set_budget(caps)
        plan = self._cheapest()
        if self.logger is not None:
            known = (*self._known, *self.trials)
            self.logger.finish(next(trial for trial in known if trial.plan == plan))
        return FloorResult(plan, tuple(self.tried), tuple(self.trials))

    @property
    def remaining(self) -> int:
        """Evaluations that are left."""
        return self.evaluations - len(self.trials)

    def _first_level(self) -> None:
        """Finds any plan that keeps the floor: the largest one, if the budget has room for it.

        Or the cheapest that the warm start knows.
        """
        whole = CompressionPlan.full(self.env.decisions)
        outcome = self.env.evaluate(whole)
        if outcome.feasible:
            self._record(self._trial(outcome, "whole"))
            if outcome.score >= self.floor:
                self._finish(whole, self._score(whole), 1, self.env.budget)
        kept = [trial for trial in self._known if self._keeps(trial)]
        if kept:
            plan = min(kept, key=lambda trial: trial.cost_ratio[self.cost]).plan
            self._finish(plan, self._score(plan), 0, self.env.budget)
        if self.best is None and self.remaining:
            self._level(self.high, 0)
        if self.best is None:
            most = max(level.final_score for level in self.tried) if self.tried else outcome.score
            raise InfeasibleBudgetError(
                f"No plan within {Budget(**self.caps)} was found whose score is at least "
                f"{self.floor:.4f}; the best has {most:.4f}. Allow a larger drop, give the budget "
                f"more room, or search longer."
            )

    def _trial(self, outcome: Outcome, source: str) -> Trial:
        """A trial of a plan that no agent proposed; :meth:`_record` numbers it."""
        seconds = time.perf_counter() - self._clock
        return Trial(
            0,
            outcome.plan,
            outcome.score,
            outcome.reward,
            dict(outcome.cost_ratio),
            seconds,
            source,
            **({} if outcome.evaluation is None else told_by(outcome.evaluation)),
        )

    def _next_bound(self) -> float:
        """Returns the next budget, between what can be kept and what cannot, on a log scale.

        Where both ends are known, damage is taken to be a power of the cost between them, and the
        next budget is where it would reach what is allowed; else the middle.
        """
        low, high = math.log(self.low), math.log(self.high)
        allowed = self.original - self.floor  # on the samples of the search
        ends = (self.failed, self.best)
        original = self._least + allowed
        damages = [0.0 if end is None else original - end.final_score for end in ends]
        place = 0.5
        if min(*damages, allowed) > 0.0 and damages[1] < damages[0]:
            below, above = (math.log(damage) for damage in damages)
            place = (below - math.log(allowed)) / (below - above)
        return math.exp(low + min(1.0 - _MARGIN, max(_MARGIN, place)) * (high - low))

    def _level(self, upper: float, left: int) -> None:
        """Searches at one budget and narrows the bisection.

        Args:
            upper: Of the cost.
            left: Evaluations that stay for the descent.
        """
        if not self._set_upper(upper):
            self.low = upper
            return
        before, budget = len(self.trials), self.env.budget
        spend = self.remaining - left
        share = max(_LEAST, spend // max(1, min(3, self.levels - len(self.tried))))
        result = self.make_agent().search(
            self.env,
            min(share, spend),
            self.seed,
            warm_start=[*self._known, *self.trials],
            on_trial=self._on_trial,
            progress=self.progress,
            parallel=self.parallel,
        )
        if not self._finish(
            result.plan, self._score(result.plan), len(self.trials) - before, budget
        ):
            self.low = upper
        if self._stopped:
            raise SearchStopped

    def _descend(self) -> None:
        """Takes steps from the cheapest plan known, until the evaluations are used up.

        In parallel, every step is the one that would follow if those under way kept nothing.
        """
        known = [*self._known, *self.trials]
        kept = [trial for trial in known if self._keeps(trial)]
        descent = Descent(
            min(kept, key=lambda trial: trial.cost_ratio[self.cost]),
            self.cost,
            {trial.plan for trial in known},
            np.random.default_rng(self.seed),
        )
        pending: deque[Step] = deque()
        try:
            while self.remaining:
                while len(pending) < min(self.parallel, self.remaining):
                    step = descent.propose(self.env, len(pending), self._set_upper, self.lowest)
                    if step is None:
                        break  # nothing is left below
                    self.env.submit([step.plan])
                    pending.append(step)
                if not pending:
                    return
                step = pending.popleft()
                if self.env.budget != step.budget:  # the reward may depend on it
                    self.env.set_budget(step.budget)
                trial = self._trial(self.env.evaluate(step.plan), "descent")
                self._record(trial)
                descent.tell(step, trial, self._keeps(trial))
        finally:
            self.env.scores.cancel()

    def _cheapest(self) -> CompressionPlan:
        """Returns the cheapest plan that keeps the floor, on the whole validation split too."""
        assert self.best is not None
        if self.after is not None:
            return self.best.plan
        cheaper = [
            trial
            for trial in (*self._known, *self.trials)
            if self._keeps(trial) and trial.cost_ratio[self.cost] < self.high
        ]
        for trial in sorted(cheaper, key=lambda trial: trial.cost_ratio[self.cost]):
            if self._score(trial.plan) >= self._least:
                return trial.plan
        return self.best.plan

    def _keeps(self, trial: Trial) -> bool:
        return trial.score >= self.floor and self._is_within(trial.cost_ratio)

    def _is_within(self, ratio: Mapping[str, float]) -> bool:
        return all(low <= ratio[name] <= high for name, (low, high) in self.caps.items())

    def _set_upper(self, upper: float) -> bool:
        """Bounds the cost in addition; returns whether any plan is left."""
        lower = self.caps.get(self.cost, (0.0, 1.0))[0]
        try:
            self.env.set_budget(Budget(**{**self.caps, self.cost: (min(lower, upper), upper)}))
        except InfeasibleBudgetError:  # between two plans of the grid
            return False
        return True

    def _finish(self, plan: CompressionPlan, score: float, n_trials: int, budget: Budget) -> bool:
        """Notes the end of a level; returns whether the floor was kept."""
        final = score if self.after is None else self.after(plan)
        ratio = self.env.cost_ratio(plan)
        kept = final >= self._least
        level = Level(str(budget), plan, score, final, ratio, n_trials, kept)
        self.tried.append(level)
        if kept:
            self.best, self.high = level, ratio[self.cost]
        else:
            self.failed = level
        return kept

    def _record(self, trial: Trial) -> None:
        """Notes a trial under its number in the whole search."""
        within = self._is_within(trial.cost_ratio)
        numbered = replace(trial, episode=len(self.trials), within_budget=within)
        self._clock = time.perf_counter()
        self.trials.append(numbered)
        if self.logger is not None:
            kept = [t for t in (*self._known, *self.trials) if self._keeps(t)]
            cheapest = min(kept, key=lambda t: t.cost_ratio[self.cost], default=None)
            self.logger.log(numbered, cheapest, {})
        if self.on_trial is not None:
            try:
                self.on_trial(numbered)
            except SearchStopped:  # the agent of a level ends with it, and so do all levels
                self._stopped = True
                raise

    def _on_trial(self, trial: Trial) -> None:
        self._record(trial)
        is_enough = self.after is None and trial.score >= self.floor
        if is_enough and trial.within_budget:
            raise SearchStopped

    def _score(self, plan: CompressionPlan) -> float:
        if not hasattr(self.env.learner, "evaluate_full"):
            return self.env.evaluate(plan).score
        (evaluation,) = self.env.scores.service.on_whole_split([plan])
        score = evaluation.score
        return self.env.metric.worst(self.original) if score is None else score
