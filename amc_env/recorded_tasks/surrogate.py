"""Surrogate of a network in a recorded task: the mean of a Gaussian process over plans.

With coordinates ``z_i(c) = warp(choice c of decision i) / length scale i`` and recorded plans
``p_j``, the mean on the scale of the targets is

``offset + scale * sum_j w_j (a matern(|z(p) - z(p_j)|) + b exp(-|{i: p_i != p_ji}| / l))``

with the Matern kernel of smoothness 5/2 (Rasmussen and Williams 2006, equation 4.17). The second
kernel is what is not smooth in the values: plans have it in common as far as they share choices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc_env.scores.metric import Metric
from amc_env.validation.checks import check_known

Array = npt.NDArray[np.float64]

MARGIN = 0.005
"""Keeps logarithms of accuracies 0 and 1 finite; half of a per cent."""

DECIMALS = 6
"""To which predictions are rounded, so that they are the same on every processor.

Of accuracies; of other scores, as many digits of their standard deviation, or of the usual loss.
"""

_SMALLEST_LOSS, _LARGEST_EXPONENT = 1e-30, 700.0  # keep both directions finite


@dataclass(frozen=True)
class Target:
    """The scale on which scores are fitted, and its inverse.

    Args:
        forward: Scores -> targets.
        backward: Targets -> scores.
        bounds: What scores are clipped to.
    """

    forward: Callable[[Array], Array]
    backward: Callable[[Array], Array]
    bounds: tuple[float, float] = (0.0, 1.0)


def _same(x: Array) -> Array:
    return x


def _minus_log_error(accuracy: Array) -> Array:
    return -np.log(1.0 + MARGIN - accuracy)


def _from_minus_log_error(target: Array) -> Array:
    return 1.0 + MARGIN - np.exp(-target)


def _minus_log_loss(score: Array) -> Array:
    return -np.log(np.maximum(-score, _SMALLEST_LOSS))


def _from_minus_log_loss(target: Array) -> Array:
    return -np.exp(np.minimum(-target, _LARGEST_EXPONENT))


def _log_odds(accuracy: Array) -> Array:
    return np.log((accuracy + MARGIN) / (1.0 + MARGIN - accuracy))


def _from_log_odds(target: Array) -> Array:
    return (1.0 + 2.0 * MARGIN) / (1.0 + np.exp(-target)) - MARGIN


TARGETS: dict[str, Target] = {
    "accuracy": Target(_same, _same),
    "log-error": Target(_minus_log_error, _from_minus_log_error),
    "log-odds": Target(_log_odds, _from_log_odds),
    "score": Target(_same, _same, (-math.inf, math.inf)),
    "log-loss": Target(_minus_log_loss, _from_minus_log_loss, (-math.inf, 0.0)),
}
"""Name -> scale: the accuracy itself, ``-log(error)``, ``log(accuracy / error)``; any score, and
``-log(loss)`` of one that is the negative of a loss."""

OF_ANY_METRIC = ("score", "log-loss")
"""The scales that are not of accuracies."""


def targets_for(metric: Metric) -> tuple[str, ...]:
    """Returns the names of the scales on which scores of a metric can be fitted."""
    if metric.is_accuracy:
        return tuple(name for name in TARGETS if name not in OF_ANY_METRIC)
    return OF_ANY_METRIC[:1] if metric.higher_is_better else OF_ANY_METRIC


def matern(distance: Array) -> Array:
    """Returns the Matern kernel of smoothness 5/2 at distances in length scales."""
    d = np.sqrt(5.0) * distance
    kernel: Array = (1.0 + d + d * d / 3.0) * np.exp(-d)
    return kernel


@dataclass(frozen=True)
class SurrogateSettings:
    """Settings of a surrogate, without the recorded plans and their weights.

    Args:
        coordinates: Per decision the coordinate of every choice, in length scales.
        amplitude: ``a`` above.
        rough_amplitude: ``b`` above.
        rough_length: ``l`` above, in decisions.
        target: Name in :data:`TARGETS`.
        offset: Mean of the targets.
        scale: Their standard deviation.

    Raises:
        ValueError: If the target is unknown or a number is out of range.
    """

    coordinates: tuple[tuple[float, ...], ...]
    amplitude: float
    rough_amplitude: float
    rough_length: float
    target: str
    offset: float
    scale: float

    def __post_init__(self) -> None:
        check_known("target", self.target, TARGETS)
        numbers = [self.amplitude, self.rough_amplitude, self.offset, self.scale]
        if not all(np.isfinite(row).all() for row in (numbers, *self.coordinates)):
            raise ValueError("Expected finite numbers in the settings of a surrogate.")
        if not self.rough_length > 0.0:
            raise ValueError(f"Expected a positive rough_length, got {self.rough_length}.")
        if self.target == "score" and not self.scale > 0.0:
            raise ValueError(f"Expected a positive scale, got {self.scale}.")


class Surrogate:
    """Predicts the score of a plan; equal plans get equal numbers, in any order of calls.

    Args:
        settings: The kernel and the scale of the targets.
        plans: Recorded plans, index of each decision's choice, shape ``(n_plans, n_decisions)``.
        weights: ``w`` above, shape ``(n_plans,)``.

    Raises:
        ValueError: If the shapes do not fit together, or an index is no choice.
    """

    def __init__(
        self,
        settings: SurrogateSettings,
        plans: npt.NDArray[np.integer],
        weights: npt.NDArray[np.floating],
    ) -> None:
        n_choices = np.array([len(row) for row in settings.coordinates])
        if plans.ndim != 2 or plans.shape[1] != len(n_choices):
            raise ValueError(
                f"Expected plans of {len(n_choices)} decisions, got shape {plans.shape}."
            )
        if weights.shape != plans.shape[:1] or not np.isfinite(weights).all():
            raise ValueError(f"Expected a finite weight for each of {len(plans)} plans.")
        if (plans < 0).any() or (plans >= n_choices).any():
            raise ValueError("A recorded plan has a choice that its decision does not offer.")
        self.settings = settings
        self.plans = plans
        self.weights = weights
        self._rows = [np.array(row, dtype=np.float64) for row in settings.coordinates]
        self._support = located(settings.coordinates, plans)
        self._squares: Array = (self._support**2).sum(axis=1)
        self._weights = weights.astype(np.float64)
        narrow = np.min_scalar_type(int(n_choices.max()) - 1)
        self._columns = np.ascontiguousarray(plans.T, dtype=narrow)
        differing = np.arange(len(n_choices) + 1)
        self._rough: Array = np.exp(-differing / settings.rough_length)
        self._target = TARGETS[settings.target]
        self._decimals = DECIMALS
        if settings.target == "score":
            self._decimals -= math.floor(math.log10(settings.scale))
        elif settings.target == "log-loss":  # of the usual loss
            self._decimals += math.floor(settings.offset / math.log(10.0))

    def predict(self, choices: Sequence[int]) -> float:
        """Returns the score of a plan, rounded; an accuracy is clipped to [0, 1].

        Args:
            choices: Index of each decision's choice.
        """
        s = self.settings
        place = np.array([row[c] for row, c in zip(self._rows, choices, strict=True)])
        squared = self._squares + place @ place - 2.0 * (self._support @ place)
        smooth = self._weights @ matern(np.sqrt(np.maximum(squared, 0.0)))
        wanted = np.array(choices, dtype=self._columns.dtype)[:, None]
        differing = (self._columns != wanted).sum(axis=0, dtype=np.uint16)
        sums = np.bincount(differing, weights=self._weights, minlength=len(self._rough))
        rough = float(sums @ self._rough)
        mean = np.array(s.offset + s.scale * (s.amplitude * smooth + s.rough_amplitude * rough))
        low, high = self._target.bounds
        return round(min(high, max(low, float(self._target.backward(mean)))), self._decimals)


def located(
    coordinates: Sequence[Sequence[float] | Array], plans: npt.NDArray[np.integer]
) -> Array:
    """Returns the coordinates of plans, shape ``(n_plans, n_decisions)``."""
    columns = [np.asarray(row)[column] for row, column in zip(coordinates, plans.T, strict=True)]
    return np.stack(columns, axis=1).astype(np.float64)
