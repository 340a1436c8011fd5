"""What a network has to do with a budget that no plan meets."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from amc_env.graph import HEADS, LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision
from amc_env.validation.sentences import some

_WORK = {"macs", "bops"}


def reasons(
    graph: LayerGraph, decisions: Sequence[Decision], bounded: Collection[str], *, too_low: bool
) -> list[str]:
    """Returns sentences on what no decision changes, and on what has to stay.

    Args:
        graph: The network.
        decisions: All decisions.
        bounded: Costs that the budget bounds.
        too_low: Whether an upper bound is below what the smallest plan costs.
    """
    found = [*graph.remarks()] if _WORK.intersection(bounded) else []
    decided = {d.target for d in decisions if d.kind.quantity is Quantity.WIDTH}
    heads = [g.name for g in graph.groups if g.role == HEADS and g.name in decided]
    may_go = any(d.kind.quantity is Quantity.PRESENCE for d in decisions)  # attention and all
    if heads and too_low and not may_go:
        found.append(f"Of every attention at least one head has to stay: {some(heads)}.")
    return found
