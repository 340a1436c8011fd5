"""Many plans whose decisions are made together: the same choices as one plan after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from amc_env.budgets.balance import Doubt
from amc_env.budgets.budget import Bounds
from amc_env.budgets.followed import Windows
from amc_env.budgets.walk import Walk
from amc_env.costs.products import Array
from amc_env.plan import Decision

Truth = npt.NDArray[np.bool_]
Request = Callable[[float, int, Bounds, float], float]
"""What is asked for, index of the decision, its interval and balanced ratio -> requested value."""

_CHUNK = 300_000  # numbers at once: they fit into a processor's cache
_EXACT_REQUESTS = 1e3  # see ``followed.nearest_of``


@dataclass(frozen=True)
class ManyPlans:
    """Chooses the values of many plans.

    Args:
        windows: The bounds.
        decisions: All decisions in order.
        request: Makes the requested value of what is asked for; None where it is one.
        settled: Prefix and what is known of its balanced ratio -> the ratio.
    """

    windows: Windows
    decisions: Sequence[Decision]
    request: Request | None
    settled: Callable[[list[float], Doubt], float]

    def choose(self, rows: Sequence[Sequence[float]]) -> tuple[Array, Truth]:
        """Chooses the values of plans, as many at once as a processor's cache holds.

        Args:
            rows: Per plan what is asked for.

        Returns:
            Values, shape ``(n_plans, n_decisions)``, and of which plans they are known; the others
            need a search for what can be completed.
        """
        size = max(1, _CHUNK // self.windows.line.factors.size)
        values = np.empty((len(rows), len(self.decisions)))
        is_known = np.ones(len(rows), dtype=np.bool_)
        for first in range(0, len(rows), size):
            some = slice(first, first + size)
            values[some], is_known[some] = self._choose_at_once(rows[some])
        return values, is_known

    def _choose_at_once(self, rows: Sequence[Sequence[float]]) -> tuple[Array, Truth]:
        walk = Walk(self.windows.line, len(rows))
        values = np.empty((len(rows), len(self.decisions)))
        is_known = np.ones(len(rows), dtype=np.bool_)
        for i, decision in enumerate(self.decisions):
            grid = np.array(decision.choices)
            fits, unknown = self.windows.decided(walk.costs(self.windows.n_ends))
            is_known &= _are_met(self.windows, walk) & fits.any(axis=1)
            if unknown is not None:
                is_known &= ~unknown.any(axis=1)
            fits[~is_known] = True  # anything, to go on
            asked = np.array([row[i] for row in rows], dtype=np.float64)
            if self.request is not None:
                lows, highs = fits.argmax(axis=1), len(grid) - 1 - fits[:, ::-1].argmax(axis=1)
                ratios = _balanced(self.windows, walk)
                for k in np.flatnonzero(is_known).tolist():
                    if np.isnan(ratios[k]):
                        doubt = self.windows.balance.doubt(walk.totals[:, k])
                        ratios[k] = self.settled(values[k, :i].tolist(), doubt)
                    interval = (decision.choices[lows[k]], decision.choices[highs[k]])
                    asked[k] = self.request(float(asked[k]), i, interval, float(ratios[k]))
            is_known &= np.abs(asked) < _EXACT_REQUESTS
            values[:, i] = grid[_nearest(grid, fits, asked)]
            walk.take(values[:, i])
        return values, is_known


def _are_met(windows: Windows, walk: Walk) -> Truth:
    """Whether the smallest, or the largest, of everything that is left meets all bounds."""
    fits, _ = windows.decided(walk.end_costs()[..., None])
    met: Truth = fits[:, 0]
    return met


def _balanced(windows: Windows, walk: Walk) -> Array:
    """The balanced ratios; NaN where a cost model has to be asked."""
    ratios = walk.end_costs()[:, :, 1] / windows.original[:, 0]
    is_whole: Truth = np.logical_and.reduce(ratios <= windows.upper[:, 0], axis=0)
    balanced = np.ones(len(is_whole))
    balanced[~is_whole] = windows.balance.settled(walk.totals[:, ~is_whole])
    return balanced


def _nearest(grid: Array, fits: Truth, asked: Array) -> npt.NDArray[np.intp]:
    """Indices of the choices nearest to what is asked for; of two equally near, the larger."""
    distance = np.where(fits, np.abs(grid - asked[:, None]), np.inf)
    last: npt.NDArray[np.intp] = len(grid) - 1 - distance[:, ::-1].argmin(axis=1)
    return last
