"""A first plan from per-layer error curves that cost nothing."""

from __future__ import annotations

import heapq
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
    index = _cut_until_it_fits(env, curves)
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
    """How far the plan lies above the upper bounds, 0 if it meets them all."""
    values = np.array([d.choices[i] for d, i in zip(env.decisions, index, strict=True)])
    return sum(
        max(0.0, env.costs[name](values) / env.original_cost[name] - upper)
        for name, (_, upper) in env.budget.bounds.items()
    )


def _cut_until_it_fits(env: CompressionEnv, curves: Curves) -> list[int]:
    """Makes the cut, of any depth in any decision, with the least error per excess removed.

    The less is left of a network, the less another cut saves, so prices only rise (exactly so for
    sums of products like MACs and bytes). A price computed earlier is thus a lower bound: only the
    cheapest one has to be computed again.
    """
    index = [len(decision.choices) - 1 for decision in env.decisions]
    excess = _excess(env, index)

    def priced(i: int, lower: int) -> list[tuple[float, int, int, int]]:
        saved = excess - _excess(env, [*index[:i], lower, *index[i + 1 :]])
        if saved <= 0.0:
            return []
        return [(float((curves[i][lower] - curves[i][index[i]]) / saved), i, lower, cuts)]

    cuts = 0
    heap = [cut for i in range(len(index)) for lower in range(index[i]) for cut in priced(i, lower)]
    heapq.heapify(heap)
    while excess > 0.0 and any(index):
        if not heap:  # no single cut helps: let the projection decide
            return [0] * len(index)
        _, i, lower, computed = heapq.heappop(heap)
        if computed < cuts:
            for cut in priced(i, lower):
                heapq.heappush(heap, cut)
            continue
        index[i], cuts = lower, cuts + 1
        excess = _excess(env, index)
        # What is left to cut of this decision now starts from here: cheaper than before, perhaps.
        heap = [entry for entry in heap if entry[1] != i]
        heap += [cut for deeper in range(lower) for cut in priced(i, deeper)]
        heapq.heapify(heap)
    return index
