"""The evaluations service over a backend: plans go as JSON, scores come back."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from amc_compress.evaluations.dispatcher import Dispatcher
from amc_compress.learners.numerics.processor import processor
from amc_env import CompressionPlan, Evaluation, EvaluationError, Evaluations, InputDataError
from amc_env.scores.compressible import Compressible
from amc_env.scores.evaluations import evaluated, evaluated_in_stages, evaluation_of
from amc_env.scores.stages import Measured, Race, Stages

Request = tuple[str, bool, Race | None]
"""A plan as JSON, whether it is evaluated on the whole validation split, and what it is compared
with in stages."""

Scored = tuple[float | Measured, float, str]
"""Score, or what was measured in stages, processor seconds, and what evaluated."""


@dataclass(frozen=True)
class PlanEvaluator:
    """Answers requests in a worker.

    Args:
        learner: Prepared once, by the search; its statistics travel with it, so that every worker
            repairs and evaluates from the same numbers.
        stages: How plans are evaluated in stages, if they are.
    """

    learner: Compressible
    stages: Stages | None = None

    def __call__(self, request: Request) -> Scored | None:
        """Returns the score of a plan, what it took, and where; None if it cannot be had here."""
        text, whole_split, race = request
        started = time.process_time()
        plan = CompressionPlan.from_json(text)
        score: float | Measured
        try:
            if self.stages is None or whole_split:
                score = evaluated(self.learner, plan, whole_split=whole_split)
            else:
                score = evaluated_in_stages(self.learner, plan, self.stages, race)
        except InputDataError:
            if whole_split:  # its loader is one that did not travel
                return None
            raise
        return score, time.process_time() - started, processor()


class RemoteEvaluations(Evaluations):
    """Evaluates plans by the workers of a dispatcher.

    Args:
        start: Makes the dispatcher, of a payload that is a :class:`PlanEvaluator`, at the first
            plan: a search all of whose plans are known needs none.
        learner: That of the payload; evaluates here what the workers cannot: the whole validation
            split, where its loader does not pickle or takes longer than a plan may.
        stages: Those of the payload.
    """

    def __init__(
        self,
        start: Callable[[], Dispatcher],
        learner: Compressible,
        stages: Stages | None = None,
    ) -> None:
        self._start = start
        self.stages = stages
        self._dispatcher: Dispatcher | None = None
        self._learner = learner
        self._plans: deque[tuple[CompressionPlan, bool]] = deque()

    @property
    def pending(self) -> int:  # noqa: D102
        return len(self._plans)

    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:  # noqa: D102
        self._submit([(plan, whole_split, None) for plan in plans])

    def submit_staged(self, plans: Sequence[tuple[CompressionPlan, Race | None]]) -> None:  # noqa: D102
        self._submit([(plan, False, race) for plan, race in plans])

    def _submit(self, plans: Sequence[tuple[CompressionPlan, bool, Race | None]]) -> None:
        if self._dispatcher is None:
            self._dispatcher = self._start()
        self._plans.extend((plan, whole_split) for plan, whole_split, _ in plans)
        self._dispatcher.submit(
            [(plan.to_json(), whole_split, race) for plan, whole_split, race in plans]
        )

    def result(self) -> Evaluation:  # noqa: D102
        if self._dispatcher is None:
            raise EvaluationError("Expected a plan before its score is asked for.")
        answer = self._dispatcher.result()
        plan, whole_split = self._plans.popleft()
        if whole_split and answer.value is None:
            return Evaluation(plan, evaluated(self._learner, plan, whole_split=True))
        if answer.failure:
            return Evaluation(plan, None, answer.failure)
        found, seconds, where = answer.value
        return replace(evaluation_of(plan, found), cpu_seconds=seconds, processor=where)

    def cancel(self) -> None:  # noqa: D102
        self._plans.clear()
        if self._dispatcher is not None:
            self._dispatcher.cancel()

    def close(self) -> None:  # noqa: D102
        self._plans.clear()
        if self._dispatcher is not None:
            self._dispatcher.close()
