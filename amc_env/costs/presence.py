"""What is there of a network whose branches may be left out, as costs count it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amc_env.costs.layer_terms import WidthMatrix, check_names, columns
from amc_env.costs.products import Affine, Block
from amc_env.graph import Branch, ChannelParameters, LayerGraph, LayerSpec
from amc_env.kinds import Quantity
from amc_env.plan import Decision

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]


class Presence:
    """Which parts are there: 1, or 0 where a branch that a part belongs to is left out.

    Between 0 and 1 it interpolates; of a part in several branches it is the product.

    Args:
        names: Of the parts.
        parts_of: Branch -> names of its parts.
        graph: The network.
        decisions: All decisions in order.

    Raises:
        ValueError: If a decision is about a branch that is not in the network.
    """

    def __init__(
        self,
        names: Sequence[str],
        parts_of: Callable[[Branch], Sequence[str]],
        graph: LayerGraph,
        decisions: Sequence[Decision],
    ) -> None:
        decided = columns(decisions, Quantity.PRESENCE)
        check_names(decided, [x.name for x in graph.branches], Quantity.PRESENCE)
        around = [
            [decided[b.name] for b in graph.branches if b.name in decided and name in parts_of(b)]
            for name in names
        ]
        depth = max(map(len, around), default=0)
        self._n_decisions = len(decisions)
        # Filled up with a column of ones behind the values.
        filled = [[*found, *[len(decisions)] * (depth - len(found))] for found in around]
        self._columns: Index = np.array(filled, dtype=np.intp).reshape(len(names), depth)

    @property
    def is_whole(self) -> bool:
        """Whether all parts are always there."""
        return not self._columns.size

    def at(self, values: Array) -> Array:
        """Returns one number per part, shape ``(n_parts,)``."""
        present: Array = np.append(values, 1.0)[self._columns].prod(axis=1)
        return present

    def of(self, numbers: Array, values: Array) -> Array:
        """Returns numbers of all parts, shape ``(n_parts,)``, with 0 for what is left out."""
        return numbers if self.is_whole else numbers * self.at(values)

    def factors(self) -> tuple[Affine, ...]:
        """Returns what numbers of all parts are multiplied by; nothing if all are always there."""
        found = []
        for column in self._columns.T:
            decided = np.flatnonzero(column < self._n_decisions)
            matrix, offset = np.zeros((len(column), self._n_decisions)), np.ones(len(column))
            matrix[decided, column[decided]], offset[decided] = 1.0, 0.0
            found.append(Affine(matrix, offset))
        return tuple(found)


def of_layers(
    layers: Sequence[LayerSpec], graph: LayerGraph, decisions: Sequence[Decision]
) -> Presence:
    """Returns which layers are there."""
    return Presence([x.name for x in layers], lambda b: b.layers, graph, decisions)


def of_channels(names: Sequence[str], graph: LayerGraph, decisions: Sequence[Decision]) -> Presence:
    """Returns which layers and per-channel parameters are there, by name."""
    return Presence(names, lambda b: (*b.layers, *b.channel_parameters), graph, decisions)


def of_branches(graph: LayerGraph, decisions: Sequence[Decision]) -> Presence:
    """Returns which branches are there: one that is within another is only there with it."""
    inside = {
        outer.name: [x.name for x in graph.branches if set(x.layers) <= set(outer.layers)]
        for outer in graph.branches
    }
    names = [x.name for x in graph.branches]
    return Presence(names, lambda b: inside[b.name], graph, decisions)


class ChannelNumbers:
    """Numbers of channels of normalisations and the like, none of those that are left out."""

    def __init__(
        self,
        parameters: Sequence[ChannelParameters],
        graph: LayerGraph,
        decisions: Sequence[Decision],
    ) -> None:
        self._widths = WidthMatrix([x.width for x in parameters], graph, decisions)
        self._present = of_channels([x.name for x in parameters], graph, decisions)

    def at(self, values: Array) -> Array:
        """Returns the numbers, shape ``(n_parameters,)``."""
        return self._present.of(self._widths.at(values), values)

    def factors(self) -> tuple[Affine, ...]:
        """Returns the numbers as a product."""
        return (self._widths.affine(), *self._present.factors())


class Constants:
    """What no width changes: a total, of which some goes with what is left out.

    Args:
        total: All of it.
        shares: How much of the total each part has, and which parts are there.

    Attributes:
        always: What is there whatever is left out.

    Raises:
        ValueError: If the parts have more than all.
    """

    def __init__(self, total: float, *shares: tuple[Sequence[float] | Array, Presence]) -> None:
        self._shares = [(np.asarray(own, float), p) for own, p in shares if p.factors()]
        self.always = float(total - sum(float(own.sum()) for own, _ in self._shares))
        if self.always < 0.0:
            raise ValueError(
                f"Expected branches with at most the other parameters and buffers of the network, "
                f"got {-self.always:g} more."
            )

    def at(self, values: Array) -> float:
        """Returns what is there."""
        return self.always + sum(float(own @ p.at(values)) for own, p in self._shares)

    def blocks(self) -> tuple[Block, ...]:
        """Returns what is there besides :attr:`always`, as products."""
        return tuple(Block(own, p.factors()) for own, p in self._shares)
