"""What scores are made from: the name of a metric, its sign and range, and how it is written.

A score is any finite number of which more is better. It is the task's metric, or the negative of a
metric of which less is better.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc_env.errors import EvaluationError
from amc_env.validation.checks import checked, shown

_NAME = "score"
_WORDS = {
    "iou": "IoU",
    "map": "mAP",
    "f1": "F1",
    "mae": "MAE",
    "mse": "MSE",
    "rmse": "RMSE",
    "kl": "KL",
}
_TINY = 1e-12  # the least size that differences are divided by
_LARGEST = sys.float_info.max
_CHECK = "check the network's weights, the data and the learner"


@checked
@dataclass(frozen=True)
class Metric:
    """The metric behind the scores of a learner.

    Args:
        name: Its name, ``"accuracy"`` for one.
        higher_is_better: Whether a score is the metric itself; else it is its negative.
        best_score: The highest score there is; None if unknown.
    """

    name: str = _NAME
    higher_is_better: bool = True
    best_score: float | None = None

    @classmethod
    def of(cls, source: object) -> Metric:
        """Returns what a learner says of its scores.

        Args:
            source: Has the attributes ``metric`` (a name), ``higher_is_better`` and ``best_score``,
                or some of them. A learner of before there were scores has none: its numbers are
                accuracies.
        """
        name = getattr(source, "metric", None)
        if name is None and not hasattr(source, "original_score"):
            return ACCURACY
        best = getattr(source, "best_score", None)
        if name is not None and not isinstance(name, str):  # the metric itself
            name = getattr(name, "__name__", type(name).__name__)
        return cls(
            name or _NAME,
            bool(getattr(source, "higher_is_better", True)),
            None if best is None else float(best),
        )

    @classmethod
    def from_dict(cls, row: Mapping[str, Any] | None) -> Metric:
        """Reads what ``dataclasses.asdict`` made, as it comes from a file; nothing is accuracy.

        Raises:
            TypeError, ValueError: If it is something else.
        """
        return ACCURACY if row is None else cls(**row)

    @property
    def is_accuracy(self) -> bool:
        """Whether scores are shares of what is right, in [0, 1], written in per cent."""
        return self.name == "accuracy"

    @property
    def title(self) -> str:
        """The name as people write it: ``"mean IoU"`` of ``mean_iou``."""
        return " ".join(_WORDS.get(word, word) for word in self.name.split("_"))

    @property
    def reward_form(self) -> str:
        """How rewards that are made from such scores are formatted: any size must show."""
        return ".4f" if self.is_accuracy else ".4g"

    def value(self, score: float) -> float:
        """Returns the metric of a score."""
        return score if self.higher_is_better else 0.0 - score  # no minus zero

    def named(self, score: float) -> dict[str, float]:
        """Returns a score by both names: that of the metric, in its own sign, and ``score``."""
        return {self.name: self.value(score), _NAME: score}

    def checked(self, answer: object, source: str) -> float:
        """Returns a score as a number.

        Args:
            answer: What a learner, or a file, says.
            source: Where it comes from, for the message.

        Raises:
            EvaluationError: If it is no finite number, or no accuracy where it must be one.
        """
        if not self.is_accuracy:
            return checked_score(answer, source)
        number = _number(answer)
        if not 0.0 <= number <= 1.0:
            raise EvaluationError(
                f"Expected a finite accuracy in [0, 1] from {source}, got {shown(answer)}; "
                f"{_CHECK}."
            )
        return number

    def worst(self, original: float) -> float:
        """Returns a score for what could not be evaluated: 0 of accuracy, else far below.

        Args:
            original: That of the uncompressed network.
        """
        return 0.0 if self.is_accuracy else finite(original - 2.0 * max(abs(original), 1.0))

    def text(self, score: float) -> str:
        """Returns the metric of a score: ``"98.33%"`` of accuracy, else four digits."""
        return f"{score:.2%}" if self.is_accuracy else f"{self.value(score):.4g}"

    def said(self, score: float) -> str:
        """Returns the same with the metric's name: ``"accuracy 98.33%"``."""
        return f"{self.title} {self.text(score)}"

    def change(self, before: float, after: float) -> str:
        """Returns by how much the metric changes: ``"-0.28 points"``, ``"+1.204 worse"``."""
        if self.is_accuracy:
            return f"{100 * (after - before):+.2f} points"
        change = f"{self.value(after) - self.value(before):+.4g}"
        if self.higher_is_better or after == before:
            return change
        return f"{change} {'better' if after > before else 'worse'}"


ACCURACY = Metric("accuracy", best_score=1.0)
"""The share of samples that are classified correctly."""


def checked_score(answer: object, source: str) -> float:
    """Returns a score as a number, whatever it measures.

    Args:
        answer: What a learner, or a file, says.
        source: Where it comes from, for the message.

    Raises:
        EvaluationError: If it is no finite number.
    """
    number = _number(answer)
    if not math.isfinite(number):
        raise EvaluationError(
            f"Expected a finite score from {source}, got {shown(answer)}; {_CHECK}."
        )
    return number


def relative_loss(original: float, score: float) -> float:
    """Returns what is lost of an original score, as a share of its size; below 0 for a gain."""
    return finite((original - score) / max(abs(original), _TINY))


def finite(number: float) -> float:
    """Returns the nearest number that is finite: scores may be as large as numbers are."""
    return min(_LARGEST, max(-_LARGEST, number))


def _number(answer: object) -> float:
    try:
        return float(answer)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return math.nan
