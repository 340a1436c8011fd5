"""Base class of cost models, and shared helpers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amc_env.costs.layer_terms import check_names
from amc_env.costs.products import ProductForm
from amc_env.costs.storage import StorageFormat
from amc_env.graph import LayerGraph, LayerSpec
from amc_env.plan import Decision

Array = npt.NDArray[np.float64]


class CostModel(ABC):
    """A number that every plan has: MACs, parameters, bytes, milliseconds, ...

    Attributes:
        name: In budgets.
        unit: Of the number: ``""`` for counts, ``"B"`` for bytes, ``"ms"``, ``"mJ"`` and so on;
            absolute limits of a budget (``latency<=2ms``) are converted to it.
        floor: The smallest ratio to the original that any plan may have, whatever the budget.
        floor_reason: What that is for, as a sentence.
    """

    name: str
    unit: str = ""
    floor: float = 0.0
    floor_reason: str = ""

    @abstractmethod
    def __call__(self, values: Sequence[float] | Array) -> float:
        """Returns the cost of the plan.

        Args:
            values: One value per decision, shape ``(n_decisions,)``; values between two grid
                points are allowed and interpolate.
        """

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the cost of the uncompressed float32 network, which ratios refer to.

        Args:
            decisions: The decisions that the values belong to.
        """
        return float(self(largest(decisions)))

    def products(self) -> ProductForm | None:
        """Returns the cost as a sum of products of affine functions of the values, if it is one.

        For plans on the grid the form is the cost itself. Between two grid points it differs from
        it by no more than rounding, that of :func:`whole` included.
        """
        return None


CostFunction = Callable[[Sequence[float] | Array], float]
"""The values of all decisions -> what the plan costs; cost models are some."""


def original_cost(cost: CostFunction, decisions: Sequence[Decision]) -> float:
    """Returns what ratios of a cost refer to; a plain function has its largest plan's cost."""
    if isinstance(cost, CostModel):
        return cost.original(decisions)
    return float(cost(largest(decisions)))


def largest(decisions: Sequence[Decision]) -> Array:
    """The values that keep the network unchanged, also where a grid ends below."""
    ends = [d.kind.unchanged(d.choices) for d in decisions]
    return np.array(ends, dtype=np.float64)


def whole(cost: float, parts: int = 1) -> float:
    """Returns a cost without the rounding errors of its sum, where it is a multiple of a unit.

    MACs, parameters and bytes of plans on the grid are whole numbers, but widths are products of
    ratios and sizes; a bound of exactly 29 of 35 must not be broken by 29.000000000000004. Between
    two grid points costs are not whole, and stay as they are.

    Args:
        cost: The sum.
        parts: How many units 1 has.
    """
    scaled = cost * parts
    nearest = round(scaled)
    return nearest / parts if abs(scaled - nearest) <= 1e-9 + 1e-13 * scaled else cost


def with_weights(graph: LayerGraph) -> list[LayerSpec]:
    """The layers that have weights, in network order."""
    return [x for x in graph.layers if x.has_weights]


def checked_folding(graph: LayerGraph, storage: StorageFormat | None) -> dict[str, str]:
    """Norm -> layer of the storage, all of them known to the graph."""
    folded = dict(storage.folded) if storage is not None else {}
    check_names(folded, [x.name for x in graph.channel_parameters], "folded norms")
    check_names(folded.values(), [x.name for x in with_weights(graph)], "layers of folded norms")
    return folded
