"""What the environment needs of a learner."""

from __future__ import annotations

import warnings
from typing import Protocol, runtime_checkable

from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan, Decision
from amc_env.scores.metric import Metric


@runtime_checkable
class Compressible(Protocol):
    """Interface of learners for the environment: read-only facts, and one evaluation.

    Attributes:
        graph: Facts about the network.
        decisions: What is to be decided, in network order.
        original_score: Score of the uncompressed network on validation data: any finite number,
            higher is better. Its accuracy, for a classifier.
        cost_models: Optional: cost name -> model that takes the place of the default one of that
            name (say, bytes in the learner's file format), or joins them.
        metric: Optional: name of the metric behind the score, ``"accuracy"`` for one.
        higher_is_better: Optional: whether the score is that metric (so it is by default), or its
            negative.
        best_score: Optional: the highest score there is (1.0 for accuracy), None if unknown.
    """

    @property
    def graph(self) -> LayerGraph: ...  # noqa: D102

    @property
    def decisions(self) -> tuple[Decision, ...]: ...  # noqa: D102

    @property
    def original_score(self) -> float: ...  # noqa: D102

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the score of a complete plan after a cheap repair; the same for equal plans."""


@runtime_checkable
class OlderCompressible(Protocol):
    """A learner of before there were scores; it is taken until version 0.2, with a warning."""

    @property
    def graph(self) -> LayerGraph: ...  # noqa: D102

    @property
    def decisions(self) -> tuple[Decision, ...]: ...  # noqa: D102

    @property
    def original_accuracy(self) -> float: ...  # noqa: D102

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the accuracy of a complete plan, in [0, 1]; the same for equal plans."""


def original_score_of(learner: object) -> float:
    """Returns the score of the uncompressed network, checked.

    Raises:
        EvaluationError: If it is no finite number, or no accuracy where it must be one.

    Warns:
        DeprecationWarning: If the learner has it by its old name.
    """
    name = "original_score"
    if not hasattr(learner, name):
        name = "original_accuracy"
        warnings.warn(
            f"Use 'original_score' instead of {name!r} in {type(learner).__name__}; the old name "
            f"is read until version 0.2.",
            DeprecationWarning,
            stacklevel=3,
        )
    return Metric.of(learner).checked(getattr(learner, name), f"{type(learner).__name__}.{name}")
