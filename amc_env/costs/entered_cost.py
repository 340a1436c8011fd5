"""User-defined cost models, with every answer checked."""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, TypeGuard

import numpy as np

from amc_env.costs.cost_model import Array, CostFunction, CostModel, largest, original_cost
from amc_env.costs.cost_terms import CostTerms, cost_terms
from amc_env.errors import ArgumentError, EvaluationError
from amc_env.plan import Decision
from amc_env.validation.checks import shown

_PLANS = 6
_MAX_ASKED = 20_000
_ROUNDING = 1e-9


class EnteredCost(CostModel):
    """A user's cost model, with every answer checked.

    Args:
        name: Of the cost, for messages.
        model: A cost model, or any function of the values of all decisions.
        decisions: All decisions in order.

    Raises:
        ArgumentError: If the model cannot be called.
        EvaluationError: On every call with an answer that is no finite number of at least 0.
    """

    def __init__(self, name: str, model: CostFunction, decisions: Sequence[Decision]) -> None:
        if not callable(model):
            raise ArgumentError(
                f"Expected the cost model {name!r} to be a function of the values of all "
                f"decisions, got {shown(model)}."
            )
        self.name = name
        self.unit = str(getattr(model, "unit", ""))
        self.floor = float(getattr(model, "floor", 0.0))
        self.floor_reason = str(getattr(model, "floor_reason", ""))
        self.model = model
        self._decisions = tuple(decisions)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        answer = self.model(values)
        try:
            number = float(answer)
        except (TypeError, ValueError):
            number = math.nan
        if not 0.0 <= number < math.inf:
            raise EvaluationError(
                f"Expected the cost model {self.name!r} to return a finite number of at least 0, "
                f"got {shown(answer)} for the values {np.asarray(values).tolist()}; correct the "
                f"model."
            )
        return number

    def __getattr__(self, name: str) -> Any:
        """Returns whatever else the model has, ``predict`` for one."""
        if name == "model":  # not there yet while a copy is being made
            raise AttributeError(name)
        return getattr(self.model, name)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns what ratios refer to; of a plain function the cost of the largest plan."""
        if getattr(type(self.model), "original", CostModel.original) is CostModel.original:
            return self(largest(decisions))
        return original_cost(self.model, decisions)

    @cached_property
    def dip(self) -> str:
        """Text on where the cost falls as a decision grows; empty if nowhere.

        Some plans are asked, each along the grids of all decisions.
        """
        grids = [np.array(d.choices) for d in self._decisions]
        rng = np.random.default_rng(0)
        count = min(_PLANS, _MAX_ASKED // max(sum(len(grid) for grid in grids), 1))
        starts = [np.array([g[0] for g in grids]), np.array([g[-1] for g in grids])]
        starts += [np.array([rng.choice(g) for g in grids]) for _ in range(count)]
        return next(filter(None, (self._dip_from(start, grids) for start in starts)), "")

    def _dip_from(self, start: Array, grids: Sequence[Array]) -> str:
        """Searches along the grid of every single decision."""
        for decision, i in zip(self._decisions, range(len(grids)), strict=True):
            values = np.repeat(start[None], len(grids[i]), axis=0)
            values[:, i] = grids[i]
            costs = np.array([self(row) for row in values])
            fallen = np.flatnonzero(np.diff(costs) < -_ROUNDING * costs.max())
            if len(fallen):
                k = int(fallen[0])
                return (
                    f"{self.name} falls from {costs[k]:.6g} to {costs[k + 1]:.6g} when "
                    f"{decision.key} grows from {grids[i][k]:.4g} to {grids[i][k + 1]:.4g}"
                )
        return ""

    @cached_property
    def terms(self) -> CostTerms:
        """The cost as a sum over decisions and pairs of them, as far as it is one."""
        grids = [np.array(d.choices) for d in self._decisions]
        return cost_terms(self, grids, np.random.default_rng(0))


def entered(
    costs: Mapping[str, CostFunction], decisions: Sequence[Decision]
) -> dict[str, CostModel]:
    """Returns cost models with all those that are not this package's behind a check.

    Raises:
        ArgumentError: If one cannot be called.
    """
    return {
        name: model if _is_trusted(model) else EnteredCost(name, model, decisions)
        for name, model in costs.items()
    }


def _is_trusted(model: CostFunction) -> TypeGuard[CostModel]:
    """Whether a model is one of this package: those are tested to be finite and monotone."""
    return isinstance(model, CostModel) and type(model).__module__.partition(".")[0] == "amc_env"


def original_costs(
    costs: Mapping[str, CostModel], decisions: Sequence[Decision]
) -> dict[str, float]:
    """Returns what the ratios of all costs refer to.

    Raises:
        EvaluationError: If a cost of the original network is not finite and above 0.
    """
    originals: dict[str, float] = {}
    for name, model in costs.items():
        number = original_cost(model, decisions)
        if not isinstance(number, numbers.Real) or not 0.0 < number < math.inf:
            raise EvaluationError(
                f"Expected the cost {name!r} of the original network to be finite and above 0, "
                f"got {shown(number)}; ratios are relative to it."
            )
        originals[name] = float(number)
    return originals
