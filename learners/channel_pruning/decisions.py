"""The decisions of channel pruning: one keep ratio per channel group."""

from __future__ import annotations

from amc_env.errors import UntraceableModelError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision, keep_ratio_decision


def keep_ratio_decisions(
    graph: LayerGraph, round_to: int, min_ratio: float
) -> tuple[Decision, ...]:
    """Returns one decision per channel group, in network order.

    Raises:
        UntraceableModelError: If the network has no group that can be cut.
    """
    decisions = tuple(
        keep_ratio_decision(
            g.name, g.size, round_to, min_ratio, graph.channels_per_unit(g), g.least
        )
        for g in graph.groups
    )
    if not decisions:
        reasons = "; ".join(f"{k}: {v}" for k, v in graph.frozen.items()) or "no layers"
        raise UntraceableModelError(
            f"Expected at least one group of channels that can be cut, found none ({reasons})."
        )
    return decisions
