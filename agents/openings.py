"""A first plan from per-layer error curves that cost nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from agents.base import AgentError
from amc_env import CompressionEnv, CompressionPlan

Curves = Sequence[npt.NDArray[np.float64]]


def plan_from_layer_errors(env: CompressionEnv) -> CompressionPlan | None:
    """Returns the plan that greedily minimises the sum of relative layer errors in the budget.

    Starting from the whole network, the cut that adds the least error per cost saved is made until
    the budget is met. The curves come from the learner's ``layer_errors()``: decision key -> error
    of every choice (He et al. 2017 choose channels by the same least-squares error).

    Args:
        env: The decision problem.

    Returns:
        A feasible plan, or None if the learner offers no curves.

    Raises:
        AgentError: If a curve is missing or has another length than the decision's grid.
    """
    read = getattr(env.learner, "layer_errors", None)
    if read is None:
        return None
    curves = _checked(env, read())
    index = [len(decision.choices) - 1 for decision in env.decisions]
    excess = _excess(env, index)
    while excess > 0.0 and any(index):
        index = _best_cut(env, curves, index, excess)
        excess = _excess(env, index)
    return env.project([d.choices[i] for d, i in zip(env.decisions, index, strict=True)])


def _checked(env: CompressionEnv, curves: Mapping[str, Any]) -> Curves:
    checked = []
    for decision in env.decisions:
        curve = np.asarray(curves.get(decision.key, ()), dtype=np.float64)
        if curve.shape != (len(decision.choices),) or not np.isfinite(curve).all():
            raise AgentError(
                f"Expected layer_errors() to hold {len(decision.choices)} finite errors for "
                f"{decision.key}, got {curve.tolist()}."
            )
        checked.append(curve)
    return checked


def _excess(env: CompressionEnv, index: Sequence[int]) -> float:
    """How far the plan lies above the tightest upper bound, 0 if it meets them all."""
    values = [d.choices[i] for d, i in zip(env.decisions, index, strict=True)]
    ratio = env.cost_ratio(CompressionPlan.from_values(env.decisions, values))
    return sum(max(0.0, ratio[name] - upper) for name, (_, upper) in env.budget.bounds.items())


def _best_cut(env: CompressionEnv, curves: Curves, index: list[int], excess: float) -> list[int]:
    """The cut, of any depth in any decision, with the least added error per excess removed."""
    best, best_price = index, np.inf
    for i, curve in enumerate(curves):
        for lower in range(index[i]):
            candidate = [*index[:i], lower, *index[i + 1 :]]
            saved = excess - _excess(env, candidate)
            if saved <= 0.0:
                continue
            price = (curve[lower] - curve[index[i]]) / saved
            if price < best_price:
                best, best_price = candidate, price
    if best is index:  # no single cut helps: let the projection decide
        return [0] * len(index)
    return best
