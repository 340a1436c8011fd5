"""Evaluations as a service: plans in, scores out, told in the order of submission.

Where the work is done is the service's own matter: in this process, in others, on other machines.
The caller sees the same answers in the same order, so a search does not depend on it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from amc_env.errors import EvaluationError
from amc_env.plan import CompressionPlan
from amc_env.scores.compressible import Compressible
from amc_env.scores.metric import Metric
from amc_env.support.closing import Closing


@dataclass(frozen=True)
class Evaluation:
    """The answer to one submitted plan.

    Args:
        plan: The complete plan.
        score: Its score, higher is better; None if it could not be evaluated.
        failure: Why it could not be, in one sentence; empty if it was.
        cpu_seconds: Processor time of the evaluation, wherever it was made.
        processor: What evaluated: scores are equal bit for bit on equal processors only. Empty
            for this process.
    """

    plan: CompressionPlan
    score: float | None
    failure: str = ""
    cpu_seconds: float = 0.0
    processor: str = ""


class Evaluations(Closing):
    """Evaluates plans; answers come in the order of submission.

    A subclass implements :meth:`submit`, :meth:`result`, :meth:`cancel` and :attr:`pending`.
    """

    @abstractmethod
    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:
        """Accepts plans; it does not wait for them.

        Args:
            plans: Complete ones.
            whole_split: Whether they are evaluated on the whole validation split, by the learner's
                ``evaluate_full``.
        """

    @abstractmethod
    def result(self) -> Evaluation:
        """Waits for the oldest plan that was submitted and not answered yet.

        Raises:
            EvaluationError: If there is none, or the service itself has failed.
        """

    @abstractmethod
    def cancel(self) -> None:
        """Forgets everything that was not answered yet."""

    @property
    @abstractmethod
    def pending(self) -> int:
        """How many plans were submitted and not answered yet."""

    def on_whole_split(self, plans: Sequence[CompressionPlan]) -> list[Evaluation]:
        """Waits for plans on the whole validation split, while nothing else is pending."""
        self.submit(plans, whole_split=True)
        return [self.result() for _ in plans]

    def close(self) -> None:  # a service may hold nothing
        """Ends the service; what it holds is given back."""


class InProcess(Evaluations):
    """Evaluates in this process, a plan when its answer is asked for.

    What the learner raises is not caught: in one process there is no other place to try.

    Args:
        learner: Evaluates.
    """

    def __init__(self, learner: Compressible) -> None:
        self._learner = learner
        self._waiting: deque[tuple[CompressionPlan, bool]] = deque()

    @property
    def pending(self) -> int:  # noqa: D102
        return len(self._waiting)

    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:  # noqa: D102
        self._waiting.extend((plan, whole_split) for plan in plans)

    def result(self) -> Evaluation:  # noqa: D102
        if not self._waiting:
            raise EvaluationError("Expected a plan to be submitted before its result is asked for.")
        plan, whole_split = self._waiting.popleft()
        return Evaluation(plan, evaluated(self._learner, plan, whole_split=whole_split))

    def cancel(self) -> None:  # noqa: D102
        self._waiting.clear()


def evaluated(learner: Compressible, plan: CompressionPlan, *, whole_split: bool = False) -> float:
    """Returns the score of a plan, checked.

    Args:
        learner: Evaluates.
        plan: Complete.
        whole_split: Whether to ask the learner's ``evaluate_full``.

    Raises:
        EvaluationError: If it is no finite number, or no accuracy where it must be one.
    """
    name = "evaluate_full" if whole_split else "evaluate"
    answer = getattr(learner, name)(plan)
    return Metric.of(learner).checked(answer, f"{type(learner).__name__}.{name}")


class KnownScores:
    """The scores that an environment knows, and the service that it asks for others.

    Equal plans are evaluated once, be it that they are asked for again while the first is pending.

    Args:
        service: Evaluates.

    Attributes:
        service: May be exchanged while nothing is pending.
    """

    def __init__(self, service: Evaluations) -> None:
        self.service = service
        self._known: dict[CompressionPlan, Evaluation] = {}
        self._asked: set[CompressionPlan] = set()

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, plan: CompressionPlan) -> bool:
        return plan in self._known

    def add(self, evaluation: Evaluation) -> None:
        """Takes an answer from elsewhere."""
        self._known[evaluation.plan] = evaluation

    def submit(self, plans: Sequence[CompressionPlan]) -> None:
        """Asks the service for those that are neither known nor asked for."""
        new = [p for p in dict.fromkeys(plans) if p not in self._known and p not in self._asked]
        if new:
            self.service.submit(new)
            self._asked.update(new)

    def find(self, plan: CompressionPlan) -> Evaluation:
        """Returns the answer to a plan; asks, and waits for it, where it is not known yet.

        Raises:
            EvaluationError: If the score is none, or the service has failed.
        """
        known = self._known.get(plan)
        if known is None:
            self.submit([plan])
        while known is None:
            try:
                evaluation = self.service.result()
            except BaseException:
                self._asked.clear()  # a caller that goes on asks anew
                self.service.cancel()
                raise
            self._asked.discard(evaluation.plan)
            self._known[evaluation.plan] = evaluation
            known = self._known.get(plan)
        return known

    def cancel(self) -> None:
        """Forgets what was asked for and not answered."""
        self._asked.clear()
        self.service.cancel()
