"""Which of many plans break no upper bound, on the grid or not."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from amc_env.budgets.budget import Bounds
from amc_env.costs.cost_model import CostFunction
from amc_env.costs.products import Array, CostSums

_EPSILON = 2.0**-52

Truth = npt.NDArray[np.bool_]


class UpperBounds:
    """The upper bounds of a budget, as costs.

    Args:
        costs: Cost name -> model.
        original: Cost name -> what ratios refer to.
        bounds: Cost name -> smallest and largest ratio.
        sums: Those costs that are of product form.
    """

    def __init__(
        self,
        costs: Mapping[str, CostFunction],
        original: Mapping[str, float],
        bounds: Mapping[str, Bounds],
        sums: CostSums,
    ) -> None:
        self._limits = {name: upper * original[name] for name, (_, upper) in bounds.items()}
        self._costs = {name: costs[name] for name in bounds}
        self._sums = sums.of([name for name in sums.names if name in bounds])
        self._others = [name for name in bounds if name not in self._sums.names]
        self._upper: Array = np.array([self._limits[name] for name in self._sums.names])
        raw = self._upper * self._sums.divisor / self._sums.parts
        # Rounding errors of sums of positive numbers, and ``cost_model.whole``, at most twice.
        share = _EPSILON * (64 + self._sums.n_terms + len(self._sums.decisions)) + 2.5e-13
        margin = share * raw + 5e-9 / self._sums.parts
        self._within, self._beyond = raw - margin, raw + margin

    def fits(self, values: Array) -> bool:
        """Whether one plan breaks no upper bound, by asking the cost models; shape ``(n,)``."""
        return all(self._costs[name](values) <= limit for name, limit in self._limits.items())

    def fit(self, values: Array) -> Truth:
        """Whether plans break no upper bound; the models are asked where there is doubt.

        Args:
            values: On the grid or not, shape ``(n_plans, n_decisions)``.
        """
        raw = self._sums.raw(values)
        fits: Truth = np.logical_and.reduce(raw <= self._within, axis=1)
        doubt: Truth = np.logical_and.reduce(raw < self._beyond, axis=1)
        if not self._others:
            doubt &= ~fits
        for k in np.flatnonzero(doubt):
            fits[k] = self.fits(values[k])
        return fits

    def fit_on_grid(self, values: Array) -> Truth:
        """The same for plans on the grid alone, whose costs are exact."""
        fits: Truth = np.logical_and.reduce(self._sums.at(values) <= self._upper, axis=1)
        if self._others:
            for k in np.flatnonzero(fits):
                fits[k] = all(self._costs[n](values[k]) <= self._limits[n] for n in self._others)
        return fits
