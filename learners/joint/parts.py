"""Interface of the parts of a joint plan.

A joint plan holds the decisions of several parts: keep ratios of channel groups, densities and
bits of layers. Each part decides about the same network in its own way, and they are applied one
after the other, each to the network that the one before it has left::

    original --channels, depth--> sliced, repaired --density--> masked, refitted --bits--> quantized

Nothing here knows which kinds there are. Modules keep their names from part to part; shapes need
not stay, and the layers of branches that are left out are gone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
from torch import nn

from amc_env.errors import CompressionError, PlanMismatchError
from amc_env.graph import LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import CompressionPlan, Decision

ErrorCurves = dict[str, npt.NDArray[np.float64]]


@runtime_checkable
class PlanPart(Protocol):
    """One kind of compression, prepared for one network.

    Attributes:
        name: What the part is called where seconds and messages are told apart, ``"channels"``.
        original: The network it was prepared for, in ``eval`` mode; never changed.
        graph: Facts about that network.
        decisions: What this part decides, in network order.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def original(self) -> nn.Module: ...  # noqa: D102

    @property
    def graph(self) -> LayerGraph: ...  # noqa: D102

    @property
    def decisions(self) -> tuple[Decision, ...]: ...  # noqa: D102

    def apply(self, network: nn.Module, plan: CompressionPlan, *, exact: bool = True) -> nn.Module:
        """Returns the network with this part's decisions carried out and repaired.

        Args:
            network: What the earlier parts made of the original, with its module names, without
                the branches that they left out; the first part gets the original itself. It is not
                changed.
            plan: The decisions of this part, complete.
            exact: In float32 and without training, as for a network that is kept; otherwise as a
                candidate inside an episode, as fast as the part can.

        Returns:
            A new network in ``eval`` mode with the same module names.

        Raises:
            PlanMismatchError: If the plan does not fit.
        """

    def layer_errors(self) -> ErrorCurves:
        """Returns decision key -> error of every choice, relative to the output; the last is least.

        Comparable between parts: squared error over squared output of the layers concerned.
        """


@runtime_checkable
class ScoredPart(PlanPart, Protocol):
    """A part that also estimates what its choices cost the loss."""

    def gradient_scores(self) -> ErrorCurves:
        """Returns decision key -> rise of the loss by every choice; the last is least.

        Comparable between parts: in nats, while all else of the original is whole, see
        ``amc_compress.learners.candidates.gradient_scores``.
        """


def in_network_order(
    graph: LayerGraph, parts: Sequence[Sequence[Decision]]
) -> tuple[Decision, ...]:
    """Returns the decisions of all parts by depth, and at the same layer in the order of the parts.

    A decision about a layer stands at that layer; one about a channel group at the layer that the
    group is named after, its first producer, or where that is no layer (a table, a parameter) at
    the first layer that the group touches; one about a branch at its first layer, before all others
    there, which are of no account where it is left out.

    Args:
        graph: The network.
        parts: The decisions of each part.

    Raises:
        ValueError: If two parts decide about the same thing.
    """
    depth = {layer.name: place for place, layer in enumerate(graph.layers)}
    groups = {group.name: group for group in graph.groups}

    def place(decision: Decision) -> tuple[int, bool]:
        is_depth = decision.kind.quantity is Quantity.PRESENCE
        names: Sequence[str] = (decision.target,)
        if is_depth:
            names = graph.branch(decision.target).layers
        elif decision.target not in depth:
            group = groups.get(decision.target)
            names = (*group.producers, *group.consumers) if group else ()
        first = min((depth[name] for name in names if name in depth), default=len(depth))
        return first, not is_depth

    decisions = [decision for part in parts for decision in part]
    keys = [decision.key for decision in decisions]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(
            f"Expected parts that decide about different things, but several decide about {twice}."
        )
    return tuple(sorted(decisions, key=place))  # stable: parts stay in order


def plan_of(part: PlanPart, plan: CompressionPlan) -> CompressionPlan:
    """Returns the decisions of one part from a joint plan."""
    try:
        return CompressionPlan({d.key: plan[d.key] for d in part.decisions})
    except KeyError as error:
        raise PlanMismatchError(f"The plan lacks decisions of this network: {error}.") from error


def scores_of(part: PlanPart) -> ErrorCurves:
    """Returns the gradient scores of a part.

    Raises:
        CompressionError: If it offers none.
    """
    if not isinstance(part, ScoredPart):
        raise CompressionError(
            f"Expected parts that offer gradient_scores(), got the part {part.name!r} without; "
            f"add the method (see ScoredPart), or use layer_errors()."
        )
    return part.gradient_scores()


def check_same_network(parts: Sequence[PlanPart]) -> None:
    """Rejects parts that were prepared for different networks.

    Raises:
        ValueError: If there is no part, or their layers differ.
    """
    if not parts:
        raise ValueError(
            "Expected at least one part, e.g. JointCompression(pruning, quantization)."
        )
    first = _shape(parts[0].graph)
    for part in parts[1:]:
        other = _shape(part.graph)
        if other != first:
            different = sorted(
                name for name in {*first, *other} if first.get(name) != other.get(name)
            )
            raise ValueError(
                f"Expected parts prepared for the same network, but {parts[0].name} and "
                f"{part.name} differ in {different[:3]}; prepare both with the same model."
            )


def _shape(graph: LayerGraph) -> dict[str, tuple[str, float, int]]:
    full = graph.full()
    return {x.name: (x.kind, x.weights(full), x.positions) for x in graph.layers}
