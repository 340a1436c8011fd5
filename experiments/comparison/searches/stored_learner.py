"""Evaluations that are made once, however many agents, seeds and processes ask for them."""

from __future__ import annotations

import time
from typing import Any

from amc_compress.comparison.searches.evaluation_store import EvaluationStore
from amc_env import CompressionPlan
from amc_env.scores.compressible import Compressible
from amc_env.scores.evaluations import evaluated_in_stages
from amc_env.scores.stages import Measured, Race, Stages


class StoredEvaluations:
    """A learner whose evaluations are looked up before they are made.

    All else is the learner's own, so an agent that asks for its error curves gets them.

    Args:
        learner: Evaluates what is not stored.
        store: Scores.
        full: Scores on the whole validation split, where the learner has them.

    Attributes:
        spent: Processor seconds that evaluating took in this process.
        counted: The same as if nothing had been stored: what it took when it was first evaluated.
    """

    def __init__(
        self, learner: Compressible, store: EvaluationStore, full: EvaluationStore | None
    ) -> None:
        self._learner: Any = learner
        self._store = store
        self._full = full
        self.spent = 0.0
        self.counted = 0.0

    def __getattr__(self, name: str) -> Any:
        if name == "evaluate_full" and self._full is not None:
            return self._evaluate_full
        return getattr(self._learner, name)

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the score of a complete plan."""
        return self._evaluated(plan, self._store, self._learner.evaluate)

    def evaluate_in_stages(
        self, plan: CompressionPlan, stages: Stages, race: Race | None
    ) -> Measured:
        """Returns what a staged evaluation finds; it is not looked up: what is stored is no race.

        Raises:
            ArgumentError: If the learner does not evaluate in stages.
        """
        started = time.process_time()
        found = evaluated_in_stages(self._learner, plan, stages, race)
        seconds = time.process_time() - started
        self.spent += seconds
        self.counted += seconds
        return found

    def _evaluate_full(self, plan: CompressionPlan) -> float:
        assert self._full is not None  # noqa: S101
        return self._evaluated(plan, self._full, self._learner.evaluate_full)

    def _evaluated(self, plan: CompressionPlan, store: EvaluationStore, evaluate: Any) -> float:
        choices = plan.choices_for(self._learner.decisions)
        known = store.get(choices)
        if known is None:
            store.refresh()  # another process may have been here
            known = store.get(choices)
        if known is None:
            started = time.process_time()
            score = float(evaluate(plan))
            seconds = time.process_time() - started
            self.spent += seconds
            known = store.add(choices, score, seconds)
        self.counted += known.seconds
        return known.score
