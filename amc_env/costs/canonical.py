"""One plan for each network: what is decided about the inside of a left-out branch says nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from amc_env.costs.presence import Presence
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan, Decision


class VoidDecisions:
    """Decisions that say nothing, because a branch around what they are about is left out.

    Plans that differ in their values alone are plans of the same network.

    Args:
        graph: The network.
        decisions: All decisions in order.

    Raises:
        ValueError: If a decision is about a branch that is not in the network.
    """

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        within = {
            branch.name: [d.key for d in decisions if d.kind.is_within(graph, d.target, branch)]
            for branch in graph.branches
        }
        keys = [d.key for d in decisions]
        self._around = Presence(keys, lambda branch: within[branch.name], graph, decisions)
        self._unchanged = [d.choices[-1] for d in decisions]

    def of(self, values: Sequence[float]) -> list[bool]:
        """Returns for every decision whether it says nothing.

        Args:
            values: Of all decisions.
        """
        if self._around.is_whole:
            return [False] * len(values)
        found: list[bool] = (self._around.at(np.asarray(values, np.float64)) == 0.0).tolist()
        return found

    def canonical(self, values: Sequence[float]) -> Sequence[float]:
        """Returns the values with those of the original where they say nothing."""
        if self._around.is_whole:
            return values
        void = self.of(values)
        return [u if v else x for x, u, v in zip(values, self._unchanged, void, strict=True)]


class CanonicalPlans:
    """Makes plans of values: one for all that mean the same network, and cost the same.

    Args:
        graph: The network.
        decisions: All decisions in order.
        costs_of: Values of all decisions -> all costs. One of the user's may count what is left
            out; plans that it tells apart stay as they are.
    """

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        costs_of: Callable[[Sequence[float]], object],
    ) -> None:
        self._decisions = decisions
        self._void = VoidDecisions(graph, decisions)
        self._costs_of = costs_of

    def of(self, values: Sequence[float]) -> CompressionPlan:
        """Returns the plan of the values of all decisions."""
        found = self._void.canonical(values)
        if found is not values and self._costs_of(found) != self._costs_of(values):
            found = values
        return CompressionPlan.from_values(self._decisions, found)
