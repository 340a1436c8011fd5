"""Rewards of a finished plan, chosen by name or given as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from amc_env.errors import InputDataError
from amc_env.scores.metric import finite, relative_loss
from amc_env.support.deprecation import renamed_attribute
from amc_env.validation.checks import checked
from amc_env.validation.references import FORM, is_reference, resolve


@dataclass(frozen=True)
class Result:
    """What a reward may depend on.

    Args:
        score: Score of the candidate, higher is better: its proxy accuracy, for a classifier.
        original_score: Score of the uncompressed network.
        cost: Cost name -> absolute cost of the candidate.
        cost_ratio: Cost name -> cost / original cost.
        target_ratio: Cost name -> upper bound of the budget, for the bounded costs.
        best_score: The highest score there is; None if unknown.
    """

    score: float
    original_score: float
    cost: Mapping[str, float]
    cost_ratio: Mapping[str, float]
    target_ratio: Mapping[str, float]
    best_score: float | None = None

    accuracy = renamed_attribute("accuracy", "score", removed_in="0.2")
    original_accuracy = renamed_attribute("original_accuracy", "original_score", removed_in="0.2")

    @property
    def relative_loss(self) -> float:
        """What is lost of the original score, as a share of its size; below 0 for a gain."""
        return relative_loss(self.original_score, self.score)

    @property
    def error(self) -> float:
        """How far the best score is away; where none is known, 1 + the relative loss."""
        if self.best_score is None:
            return 1.0 + self.relative_loss
        return finite(self.best_score - self.score)


RewardFunction = Callable[[Result], float]


def score(result: Result) -> float:
    """The score. Of accuracies it is AMC's ``R_err`` (He et al. 2018, 3.3) shifted by one."""
    return result.score


def error_log_macs(result: Result) -> float:
    """``-error * ln(MACs)``: AMC's ``R_FLOPs`` (He et al. 2018, Eq. 4), for soft budgets."""
    return finite(-result.error * math.log(result.cost["macs"]))


@checked
def accuracy_with_cost(cost: str, exponent: float = -0.07) -> RewardFunction:
    """Builds ``|original score| * (1 - relative loss) * (cost ratio / target ratio) ** exponent``.

    MnasNet's soft-constraint objective (Tan et al. 2019, Eq. 2-3): of accuracies, ``accuracy *
    (cost ratio / target ratio) ** exponent``. The target is the budget's upper bound for that cost,
    or the original's cost where it is not bounded. Where more is lost than there was, the sign of
    the exponent changes: cheaper plans have the higher reward there too.

    Args:
        cost: Cost name, e.g. ``"bytes"`` or ``"latency"``.
        exponent: Negative; -0.07 trades a doubling of the cost for about 5% of the score.
    """

    def reward(result: Result) -> float:
        if cost not in result.cost_ratio:
            raise ValueError(
                f"The reward needs the cost {cost!r}; available: {sorted(result.cost_ratio)}. "
                f"Give a cost model by that name to the environment."
            )
        target = result.target_ratio.get(cost, 1.0)
        # Of an original score above 0 this adds 0: what is left is the score itself.
        left = result.score + (abs(result.original_score) - result.original_score)
        power = exponent if left >= 0.0 else -exponent
        return finite(left * float((result.cost_ratio[cost] / target) ** power))

    return reward


def haq(result: Result) -> float:
    """``0.1 * (score - original score)`` in percentage points: HAQ (Wang et al. 2019).

    Points of the score where the best one is 1, as of accuracies; else per cent of the original.
    """
    if result.best_score == 1.0:
        return finite(0.1 * 100.0 * (result.score - result.original_score))
    return finite(0.1 * 100.0 * -result.relative_loss)


REWARDS: dict[str, RewardFunction] = {
    "accuracy": score,
    "score": score,
    "error_log_macs": error_log_macs,
    "accuracy_size": accuracy_with_cost("bytes"),
    "accuracy_latency": accuracy_with_cost("latency"),
    "accuracy_bops": accuracy_with_cost("bops"),
    "haq": haq,
}
"""Name -> reward; ``"accuracy"`` is the score, by the name that it has for classifiers."""


@dataclass(frozen=True)
class OwnReward:
    """A user-defined reward with checked values.

    Args:
        reference: Where it is, ``"package.module:name"``.
        function: What is there.
    """

    reference: str
    function: RewardFunction

    def __call__(self, result: Result) -> float:
        """Returns the reward.

        Raises:
            InputDataError: If it is no finite number.
        """
        reward = self.function(result)
        if not isinstance(reward, Real) or not math.isfinite(reward):
            raise InputDataError(
                f"Expected the reward {self.reference!r} to return a finite number, got {reward!r}."
            )
        return float(reward)


def resolve_reward(reward: str | RewardFunction) -> RewardFunction:
    """Returns the function behind a name or a reference, or the function itself.

    Args:
        reward: A name of :data:`REWARDS`; ``"package.module:name"`` for a function of a
            :class:`Result` of the user; or such a function.

    Raises:
        ValueError: If the name is unknown, or there is no function.
    """
    if callable(reward):
        return reward
    if isinstance(reward, str) and reward in REWARDS:
        return REWARDS[reward]
    if not isinstance(reward, str) or not is_reference(reward):
        raise ValueError(
            f"Unknown reward {reward!r}; expected one of {sorted(REWARDS)}, or {FORM} for your own."
        )
    found = resolve(reward, "reward")
    if not callable(found) or isinstance(found, type):
        raise InputDataError(
            f"Expected the reward {reward!r} to be a function of an amc_env.Result, got {found!r}."
        )
    return OwnReward(reward, found)
