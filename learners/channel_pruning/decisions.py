"""The decisions of channel pruning: keep ratios of groups, and which branches are there."""

from __future__ import annotations

from collections.abc import Sequence

from amc_env.errors import ArgumentError, UntraceableModelError
from amc_env.graph import LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision, keep_ratio_decision, with_depth


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


def with_branches(graph: LayerGraph, ratios: Sequence[Decision]) -> tuple[Decision, ...]:
    """Returns keep ratios with the decisions about the branches of a network among them.

    Raises:
        UntraceableModelError: If the network has no branch that can be left out.
    """
    if not graph.branches:
        raise UntraceableModelError(
            f"Expected at least one residual branch that can be left out, found none "
            f"({' '.join(graph.notes) or 'no sum of a tensor and of what modules make of it'}); "
            f"decide about channels alone."
        )
    return with_depth(graph, ratios)


def decisions_about(quantity: Quantity, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Returns the decisions whose values are that quantity."""
    return tuple(d for d in decisions if d.kind.quantity is quantity)


def check_channels_alone(decisions: Sequence[Decision], what: str) -> None:
    """Rejects decisions about branches.

    Raises:
        ArgumentError: If there is one.
    """
    others = [d.key for d in decisions if d.kind.quantity is not Quantity.WIDTH]
    if others:
        raise ArgumentError(
            f"Expected decisions about channels alone for {what}, got {others[0]} as well; prepare "
            f"the learner without decide_depth."
        )
