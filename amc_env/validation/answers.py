"""Validation of agents' actions and of rewards at the environment's boundary."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from gymnasium.error import InvalidAction

from amc_env.errors import ArgumentError, EvaluationError
from amc_env.validation.checks import check_numbers, shown


def request_of(action: object) -> float:
    """Returns an action of one number, shape ``(1,)``.

    Raises:
        InvalidAction: If it is something else than a number in [0, 1].
    """
    if isinstance(action, np.ndarray) and action.shape == (1,) and action.dtype.kind == "f":
        number = float(action[0])
        if 0.0 <= number <= 1.0:
            return number
    return float(requests_of(action, 1)[0])


def requests_of(action: object, count: int) -> npt.NDArray[np.float64]:
    """Returns an action as numbers, shape ``(count,)``.

    Raises:
        InvalidAction: If it is something else than so many numbers in [0, 1]; NaN is none.
    """
    try:
        array = np.asarray(action)
        fits = array.dtype.kind in "fiu" and array.shape == (count,)
        if fits and bool(((array >= 0.0) & (array <= 1.0)).all()):
            return array.astype(np.float64)
    except (TypeError, ValueError, RuntimeError):
        pass
    many = "one number" if count == 1 else f"{count} numbers"
    raise InvalidAction(f"Expected {many} in [0, 1], shape ({count},), got {shown(action)}.")


def actions_of(actions: object, count: int) -> list[float]:
    """Returns the actions of an episode as numbers.

    Raises:
        ArgumentError: If they are something else than so many numbers in [0, 1].
    """
    asked: list[float] = check_numbers("actions", actions, count).tolist()
    if not all(0.0 <= action <= 1.0 for action in asked):
        raise ArgumentError(f"Expected actions in [0, 1], got {asked}.")
    return asked


def checked_reward(answer: object) -> float:
    """Returns a reward as a number.

    Raises:
        EvaluationError: If it is no finite number.
    """
    try:
        number = float(answer)  # type: ignore[arg-type]
    except (TypeError, ValueError, RuntimeError):
        number = math.nan
    if not math.isfinite(number):
        raise EvaluationError(
            f"Expected the reward function to return a finite number, got {shown(answer)}; "
            f"correct the function."
        )
    return number
