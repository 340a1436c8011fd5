"""The same problem in one step: an action is a whole plan, rescaled until it meets the budget."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
from gymnasium.error import ResetNeeded

from amc_env.budgets.budget import value_span
from amc_env.env import Action, CompressionEnv
from amc_env.observation import Observation, scaled
from amc_env.plan import CompressionPlan
from amc_env.validation.answers import requests_of
from amc_env.validation.checks import check_numbers, checked

_BISECTIONS = 40
_FEW = 4  # plans that are rescaled sooner one by one

Array = npt.NDArray[np.float64]


@checked
class OneShotEnv(gym.Wrapper[Observation, Action, Observation, Action]):
    """A compression environment whose episodes have one step.

    **Action.** ``Box(0, 1, (n_decisions,))``, float32: how much each decision should keep, relative
    to the others. All requests are multiplied by one number, found by bisection, so that the budget
    is spent (see :func:`rescale`); only their proportions matter.

    **Observation.** ``Box(0, 1, (n_bounds,))``, float32: the upper bounds of the budget, in the
    order of ``budget.bounds``. All zeros afterwards.

    **Info.** Of the step: what the last step of an episode of ``CompressionEnv`` has;
    ``executed_action`` is the whole plan as positions of its values on their scales.

    Args:
        env: A ``CompressionEnv``, bare or as ``gymnasium.make`` wraps it.

    Attributes:
        problem: That environment, bare.

    Raises:
        TypeError: If it is no compression environment.
    """

    def __init__(self, env: gym.Env[Any, Any]) -> None:
        bare = env.unwrapped
        if not isinstance(bare, CompressionEnv):
            raise TypeError(f"Expected a CompressionEnv, got {type(bare).__name__}.")
        super().__init__(env)
        self.problem: CompressionEnv = bare
        n_bounds = len(bare.budget.bounds)
        self.action_space = gym.spaces.Box(0.0, 1.0, (bare.n_decisions,), np.float32)
        self.observation_space = gym.spaces.Box(0.0, 1.0, (n_bounds,), np.float32)
        self._ready = False

    @checked
    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode; ``options`` are those of ``CompressionEnv.reset``."""
        n_bounds = len(self.problem.budget.bounds)
        super().reset(seed=seed, options=options)
        if len(self.problem.budget.bounds) != n_bounds:
            raise ValueError(
                f"Expected a budget of {n_bounds} costs, as the observation has, got "
                f"{self.problem.budget}."
            )
        self._ready = True
        return self.bounds(), {}

    def bounds(self) -> Observation:
        """Returns the observation: the upper bounds, shape ``(n_bounds,)``."""
        return np.array([upper for _, upper in self.problem.budget.bounds.values()], np.float32)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Evaluates the plan that an action means.

        Raises:
            InvalidAction: If the action is not in the action space (NaN included).
            ResetNeeded: If ``reset`` has not been called.
        """
        return self.play(rescale(self.problem, requests_of(action, self.problem.n_decisions)))

    def play(self, plan: CompressionPlan) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Ends the episode with a plan of one's own instead of a rescaled action.

        Raises:
            ResetNeeded: If ``reset`` has not been called.
            PlanMismatchError: If the plan does not fit the network.
        """
        if not self._ready:
            raise ResetNeeded("No episode is under way; call reset() first.")
        self._ready = False
        outcome = self.problem.evaluate(plan)
        executed = positions(self.problem, plan)
        info = {"executed_action": executed, **outcome.info(self.problem.metric)}
        return np.zeros_like(self.bounds()), outcome.reward, True, False, info


def positions(env: CompressionEnv, plan: CompressionPlan) -> npt.NDArray[np.float32]:
    """Returns where each value of a plan lies on its scale, in [0, 1], shape ``(n_decisions,)``."""
    values = plan.values_for(env.decisions)
    found = [scaled(v, value_span(d)) for d, v in zip(env.decisions, values, strict=True)]
    return np.array(found, dtype=np.float32)


def rescale(env: CompressionEnv, requests: Sequence[float] | npt.NDArray[Any]) -> CompressionPlan:
    """Returns the plan that spends the budget in the proportions of the requests.

    A request is a position on the scale of its decision, in [0, 1]. The largest ``m`` is found for
    which no upper bound is broken when decision ``i`` takes the position ``m * requests[i]``, off
    the grid but within its smallest and largest choice; values are rounded down to the grid, and
    what that leaves is spent step by step, on the decision that lies farthest below what it was
    to get. The feasible plan nearest to the result meets the lower bounds too.

    Args:
        env: The decision problem.
        requests: Shape ``(n_decisions,)``.

    Raises:
        ArgumentError: If they are not one finite number per decision.
    """
    asked = check_numbers("requests", requests, env.n_decisions)
    line = _Requests(env, asked[None])

    def values_at(share: float) -> Array:
        values: Array = line.at(np.array([share]))[0]
        return values

    low, high = 0.0, 1.0
    if fits(env, values_at(high)):
        low = high
    else:
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(env, values_at(middle)) else (low, middle)
    return env.project(_spend(env, values_at(low)))


def rescale_all(
    env: CompressionEnv, requests: Sequence[Sequence[float] | npt.NDArray[Any]] | npt.NDArray[Any]
) -> list[CompressionPlan]:
    """Returns the plans of many requests: those of :func:`rescale`, and much faster.

    Args:
        env: The decision problem.
        requests: One row per plan, shape ``(n_plans, n_decisions)``.

    Raises:
        ArgumentError: If they are not rows of one finite number per decision.
    """
    rows = [check_numbers("requests", row, env.n_decisions) for row in requests]
    if not rows:
        return []
    if len(rows) <= _FEW:
        return [rescale(env, row) for row in rows]
    line = _Requests(env, np.stack(rows))
    low, high = np.zeros(len(rows)), np.ones(len(rows))
    whole = env.upper_bounds.fit(line.at(high))
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        fits = env.upper_bounds.fit(line.at(middle))
        low, high = np.where(fits, middle, low), np.where(fits, high, middle)
    return env.project_all(_spend_all(env, line.at(np.where(whole, 1.0, low))))


class _Requests:
    """Where plans go as all requests of each are multiplied by one number.

    Args:
        env: The decision problem.
        asked: Requests, shape ``(n_plans, n_decisions)``.
    """

    def __init__(self, env: CompressionEnv, asked: Array) -> None:
        spans = np.array([value_span(d) for d in env.decisions])
        self._start, self._length = spans[:, 0], spans[:, 1] - spans[:, 0]
        self._lowest = np.array([d.choices[0] for d in env.decisions])
        self._highest = np.array([d.choices[-1] for d in env.decisions])
        self._weights = np.where(asked > 0.0, np.maximum(asked, 1e-12), 0.0)

    def at(self, share: Array) -> Array:
        """Returns the plans at shares ``m / (1 + m)``, so that any ``m`` is in reach, 1 included.

        Args:
            share: Of each plan, shape ``(n_plans,)``.
        """
        factor = (share / np.maximum(1.0 - share, 1e-300))[:, None]
        place = np.minimum(1.0, factor * self._weights)
        requested = self._start + place * self._length
        inside: Array = np.minimum(np.maximum(requested, self._lowest), self._highest)
        return inside


def fits(env: CompressionEnv, values: npt.NDArray[np.float64]) -> bool:
    """Whether values, on the grid or not, break no upper bound; lower bounds are not asked."""
    return env.upper_bounds.fits(values)


def _spend(env: CompressionEnv, requested: npt.NDArray[np.float64]) -> list[float]:
    """Rounds down to the grid, then spends what is left of the budget."""
    grids = [np.array(d.choices) for d in env.decisions]
    index = [
        max(0, int(np.searchsorted(grid, value + 1e-9, side="right")) - 1)
        for grid, value in zip(grids, requested, strict=True)
    ]
    values = np.array([grid[i] for grid, i in zip(grids, index, strict=True)])
    widths = np.array([grid[-1] - grid[0] or 1.0 for grid in grids])
    open_ = [i for i, grid in enumerate(grids) if index[i] + 1 < len(grid)]
    while open_:
        i = max(open_, key=lambda k: ((requested[k] - values[k]) / widths[k], -k))
        values[i] = grids[i][index[i] + 1]
        if fits(env, values):
            index[i] += 1
            if index[i] + 1 == len(grids[i]):
                open_.remove(i)
        else:  # of monotone costs, what does not fit now never will
            values[i] = grids[i][index[i]]
            open_.remove(i)
    return [float(v) for v in values]


def _spend_all(env: CompressionEnv, requested: Array) -> Array:
    """The same of many plans, a row per plan."""
    grids = [np.array(d.choices) for d in env.decisions]
    last = np.array([len(grid) - 1 for grid in grids])
    table = np.zeros((len(grids), last.max() + 1))
    for row, grid in zip(table, grids, strict=True):
        row[: len(grid)] = grid
    index = np.stack(
        [
            np.maximum(0, np.searchsorted(grid, column + 1e-9, side="right") - 1)
            for grid, column in zip(grids, requested.T, strict=True)
        ],
        axis=1,
    )
    values: Array = table[np.arange(len(grids)), index]
    widths = np.array([grid[-1] - grid[0] or 1.0 for grid in grids])
    missing = np.where(index < last, (requested - values) / widths, -np.inf)
    plans = np.flatnonzero((index < last).any(axis=1))
    while len(plans):
        i = missing[plans].argmax(axis=1)  # of equals the first
        before = values[plans, i]
        values[plans, i] = table[i, index[plans, i] + 1]
        fits = env.upper_bounds.fit_on_grid(values[plans])
        # Of monotone costs, what does not fit now never will.
        values[plans, i] = np.where(fits, values[plans, i], before)
        index[plans, i] += fits
        is_open = fits & (index[plans, i] < last[i])
        left = (requested[plans, i] - values[plans, i]) / widths[i]
        missing[plans, i] = np.where(is_open, left, -np.inf)
        plans = plans[(missing[plans] > -np.inf).any(axis=1)]
    return values
