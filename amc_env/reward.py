"""Rewards of a finished plan, chosen by name or given as a function."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real

from amc_env.errors import InputDataError
from amc_env.validation.checks import checked
from amc_env.validation.references import FORM, is_reference, resolve


@dataclass(frozen=True)
class Result:
    """What a reward may depend on.

    Args:
        accuracy: Proxy accuracy of the candidate, in [0, 1].
        original_accuracy: Accuracy of the uncompressed network, in [0, 1].
        cost: Cost name -> absolute cost of the candidate.
        cost_ratio: Cost name -> cost / original cost.
        target_ratio: Cost name -> upper bound of the budget, for the bounded costs.
    """

    accuracy: float
    original_accuracy: float
    cost: Mapping[str, float]
    cost_ratio: Mapping[str, float]
    target_ratio: Mapping[str, float]


RewardFunction = Callable[[Result], float]


def accuracy(result: Result) -> float:
    """The proxy accuracy: AMC's ``R_err`` (He et al. 2018, section 3.3) shifted by one."""
    return result.accuracy


def error_log_macs(result: Result) -> float:
    """``-error * ln(MACs)``: AMC's ``R_FLOPs`` (He et al. 2018, Eq. 4), for soft budgets."""
    return -(1.0 - result.accuracy) * math.log(result.cost["macs"])


@checked
def accuracy_with_cost(cost: str, exponent: float = -0.07) -> RewardFunction:
    """Builds ``accuracy * (cost ratio / target ratio) ** exponent``.

    MnasNet's soft-constraint objective (Tan et al. 2019, Eq. 2-3). The target is the budget's
    upper bound for that cost, or the original's cost where it is not bounded.

    Args:
        cost: Cost name, e.g. ``"bytes"`` or ``"latency"``.
        exponent: Negative; -0.07 trades a doubling of the cost for about 5% of accuracy.
    """

    def reward(result: Result) -> float:
        if cost not in result.cost_ratio:
            raise ValueError(
                f"The reward needs the cost {cost!r}; available: {sorted(result.cost_ratio)}. "
                f"Give a cost model by that name to the environment."
            )
        target = result.target_ratio.get(cost, 1.0)
        return result.accuracy * float((result.cost_ratio[cost] / target) ** exponent)

    return reward


def haq(result: Result) -> float:
    """``0.1 * (accuracy - original accuracy)`` in percentage points: HAQ (Wang et al. 2019)."""
    return 0.1 * 100.0 * (result.accuracy - result.original_accuracy)


REWARDS: dict[str, RewardFunction] = {
    "accuracy": accuracy,
    "error_log_macs": error_log_macs,
    "accuracy_size": accuracy_with_cost("bytes"),
    "accuracy_latency": accuracy_with_cost("latency"),
    "accuracy_bops": accuracy_with_cost("bops"),
    "haq": haq,
}


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
