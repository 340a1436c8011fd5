"""Evaluations as a service: plans in, scores out, told in the order of submission.

Where the work is done is the service's own matter: in this process, in others, on other machines.
The caller sees the same answers in the same order, so a search does not depend on it.
"""

from __future__ import annotations

from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

from amc_env.errors import ArgumentError, EvaluationError
from amc_env.plan import CompressionPlan
from amc_env.scores.compressible import Compressible
from amc_env.scores.metric import Metric
from amc_env.scores.stages import Measured, Race, Stages, best_race
from amc_env.support.closing import Closing

MayWin = Callable[[CompressionPlan], bool]
"""Whether a plan may win: whether it meets the budget."""


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
        measured: What a staged evaluation found; None where it was none.
    """

    plan: CompressionPlan
    score: float | None
    failure: str = ""
    cpu_seconds: float = 0.0
    processor: str = ""
    measured: Measured | None = None


class Evaluations(Closing):
    """Evaluates plans; answers come in the order of submission.

    A subclass implements :meth:`submit`, :meth:`result`, :meth:`cancel` and :attr:`pending`; one
    that evaluates in stages :meth:`submit_staged` too.

    Attributes:
        stages: How plans are evaluated in stages; None for on all samples at once.
    """

    stages: Stages | None = None

    @abstractmethod
    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:
        """Accepts plans; it does not wait for them.

        Args:
            plans: Complete ones.
            whole_split: Whether they are evaluated on the whole validation split, by the learner's
                ``evaluate_full``.
        """

    def submit_staged(self, plans: Sequence[tuple[CompressionPlan, Race | None]]) -> None:
        """Accepts plans that are evaluated in stages.

        Args:
            plans: Complete ones, each with what it is compared with; None for on all samples.
        """
        raise NotImplementedError

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
        stages: How plans are evaluated in stages, if they are.
    """

    def __init__(self, learner: Compressible, stages: Stages | None = None) -> None:
        self._learner = learner
        self.stages = stages
        self._waiting: deque[tuple[CompressionPlan, Callable[[], float | Measured]]] = deque()

    @property
    def pending(self) -> int:  # noqa: D102
        return len(self._waiting)

    def submit(self, plans: Sequence[CompressionPlan], *, whole_split: bool = False) -> None:  # noqa: D102
        self._waiting.extend(
            (plan, partial(evaluated, self._learner, plan, whole_split=whole_split))
            for plan in plans
        )

    def submit_staged(self, plans: Sequence[tuple[CompressionPlan, Race | None]]) -> None:  # noqa: D102
        assert self.stages is not None, "plans are evaluated in stages where there are some"
        self._waiting.extend(
            (plan, partial(evaluated_in_stages, self._learner, plan, self.stages, race))
            for plan, race in plans
        )

    def result(self) -> Evaluation:  # noqa: D102
        if not self._waiting:
            raise EvaluationError("Expected a plan to be submitted before its result is asked for.")
        plan, evaluate = self._waiting.popleft()
        return evaluation_of(plan, evaluate())

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


def evaluated_in_stages(
    learner: Compressible, plan: CompressionPlan, stages: Stages, race: Race | None
) -> Measured:
    """Returns what a staged evaluation of a plan found, its score checked.

    Args:
        learner: Evaluates, by its ``evaluate_in_stages``.
        plan: Complete.
        stages: When it is looked at.
        race: What it is compared with; None for on all samples.

    Raises:
        ArgumentError: If the learner does not evaluate in stages.
        EvaluationError: As :func:`evaluated`.
    """
    evaluate = getattr(learner, "evaluate_in_stages", None)
    if evaluate is None:
        raise ArgumentError(
            f"Expected a learner with a method evaluate_in_stages, got {type(learner).__name__} "
            f"without: search without stages."
        )
    found: Measured = evaluate(plan, stages, race)
    metric = Metric.of(learner)
    if metric.is_accuracy:  # an estimate may be below 0
        found = replace(found, score=max(0.0, found.score))
    metric.checked(found.score, f"{type(learner).__name__}.evaluate_in_stages")
    return found


def evaluation_of(plan: CompressionPlan, found: float | Measured) -> Evaluation:
    """Returns the answer to a plan, of its score or of what was measured in stages."""
    if isinstance(found, Measured):
        return Evaluation(plan, found.score, measured=found)
    return Evaluation(plan, found)


class KnownScores:
    """The scores that an environment knows, and the service that it asks for others.

    Equal plans are evaluated once, be it that they are asked for again while the first is pending.

    In stages, a plan within the budget races against the best one that was told before it was asked
    for. Which one that is depends on the order of questions and answers alone: not on how many
    workers there are, nor on what a resumed search was given to remember.

    Args:
        service: Evaluates.

    Attributes:
        service: May be exchanged while nothing is pending.
    """

    def __init__(self, service: Evaluations) -> None:
        self.service = service
        self._known: dict[CompressionPlan, Evaluation] = {}
        self._asked: set[CompressionPlan] = set()
        self._told: dict[CompressionPlan, Measured] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __contains__(self, plan: CompressionPlan) -> bool:
        return plan in self._known

    def add(self, evaluation: Evaluation) -> None:
        """Takes an answer from elsewhere."""
        self._known[evaluation.plan] = evaluation

    def submit(self, plans: Sequence[CompressionPlan], may_win: MayWin = lambda _: True) -> None:
        """Asks the service for those that are neither known nor asked for.

        Args:
            plans: Complete ones.
            may_win: Whether a plan meets the budget; asked in stages only.
        """
        new = [p for p in dict.fromkeys(plans) if p not in self._known and p not in self._asked]
        if not new:
            return
        if self.service.stages is None:
            self.service.submit(new)
        else:
            race = best_race([found for plan, found in self._told.items() if may_win(plan)])
            self.service.submit_staged([(plan, race if may_win(plan) else None) for plan in new])
        self._asked.update(new)

    def find(self, plan: CompressionPlan, may_win: MayWin = lambda _: True) -> Evaluation:
        """Returns the answer to a plan; asks, and waits for it, where it is not known yet.

        Args:
            plan: Complete.
            may_win: As for :meth:`submit`.

        Raises:
            EvaluationError: If the score is none, or the service has failed.
        """
        known = self._known.get(plan)
        if known is None:
            self.submit([plan], may_win)
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
        if known.measured is not None and known.measured.groups:
            self._told.setdefault(plan, known.measured)
        return known

    def cancel(self) -> None:
        """Forgets what was asked for and not answered."""
        self._asked.clear()
        self.service.cancel()
