"""What a plan costs: pure arithmetic on graph facts, no network is touched.

A cost model maps the values of all decisions (in decision order) to a number and never decreases
when a value grows; the budget's exactness rests on that monotonicity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from amc_env.costs.cost_model import Array, CostModel, original_cost, whole, with_weights
from amc_env.costs.layer_terms import LayerBits, LayerDensities, LayerWeights, WidthMatrix
from amc_env.costs.presence import of_branches, of_layers
from amc_env.costs.products import Block, ProductForm
from amc_env.costs.size_costs import BytesCost, FloatBytesCost, ParamsCost
from amc_env.costs.storage import FLOAT_BITS, StorageFormat
from amc_env.graph import LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision
from amc_env.validation.checks import check_known, checked
from amc_env.validation.sentences import some

__all__ = [
    "COSTS",
    "FURTHER_COSTS",
    "BopsCost",
    "BytesCost",
    "CostModel",
    "DensityCost",
    "DepthCost",
    "FloatBytesCost",
    "MacsCost",
    "MeanBitsCost",
    "ParamsCost",
    "costs_for",
    "make_cost",
    "original_cost",
]


class MacsCost(CostModel):
    """Multiply-adds for one image (FLOPs = 2 x MACs); biases and activations are not counted.

    Densities change nothing: the kernels that compute a layer multiply its zeros too.
    """

    name = "macs"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        layers = graph.layers
        self._factor: Array = np.array([x.positions * math.prod(x.kernel) for x in layers], float)
        self._inputs = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = WidthMatrix([x.out_width for x in layers], graph, decisions)
        self._present = of_layers(layers, graph, decisions)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        products = self._present.of(self._inputs.at(v) * self._outputs.at(v), v)
        return whole(float(self._factor @ products))

    def per_layer(self, values: Array) -> Array:
        """Returns the multiply-adds of each layer, shape ``(n_layers,)``."""
        products = self._factor * self._inputs.at(values) * self._outputs.at(values)
        return self._present.of(products, values)

    def block(self) -> Block:
        """Returns the multiply-adds as products of widths."""
        widths = (self._inputs.affine(), self._outputs.affine())
        return Block(self._factor, (*widths, *self._present.factors()))

    def products(self) -> ProductForm:
        """Returns the sum over layers of positions, kernel, inputs and outputs."""
        return ProductForm((self.block(),))


class BopsCost(CostModel):
    """Bit operations for one image: ``sum(MACs * weight bits * activation bits)``.

    Densities change nothing, as for multiply-adds.

    Args:
        graph: The network.
        decisions: All decisions in order.
        storage: Bits of the layers that no decision is about.

    Raises:
        ValueError: If the storage or a bit decision names something that is not in the network.
    """

    name = "bops"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        form = storage if storage is not None else StorageFormat()
        self._macs = MacsCost(graph, decisions)
        layers = graph.layers
        self._weight_bits = LayerBits(
            layers, graph, decisions, Quantity.WEIGHT_BITS, form.weight_bits
        )
        self._activation_bits = LayerBits(
            layers, graph, decisions, Quantity.ACTIVATION_BITS, form.activation_bits
        )

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        bits = self._weight_bits.effective(v) * self._activation_bits.effective(v)
        return whole(float(self._macs.per_layer(v) @ bits))

    def products(self) -> ProductForm | None:
        """Returns multiply-adds times bits; none where a plan may leave layers in float32."""
        bits = [self._weight_bits.affine(), self._activation_bits.affine()]
        macs = self._macs.block()
        factors = (*macs.factors, *(x for x in bits if x is not None))
        return None if None in bits else ProductForm((Block(macs.weights, factors),))

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns ``MACs * 32 * 32`` with all channels."""
        return FLOAT_BITS * FLOAT_BITS * self._macs.original(decisions)


class MeanBitsCost(CostModel):
    """Bits per weight, averaged over the weights of the original network.

    "Equivalent to k bits". Cut channels keep their share in the average, so that the number speaks
    of bits alone; those of a branch that is left out have none.

    Args:
        graph: The network.
        decisions: All decisions in order.
        storage: Bits of the layers that no decision is about.

    Raises:
        ValueError: If the storage or a bit decision names something that is not in the network.
    """

    name = "mean_bits"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        form = storage if storage is not None else StorageFormat()
        layers, full = with_weights(graph), graph.full()
        self._bits = LayerBits(layers, graph, decisions, Quantity.WEIGHT_BITS, form.weight_bits)
        self._weights: Array = np.array([x.weights(full) for x in layers], dtype=np.float64)
        self._total = max(float(self._weights.sum()), 1.0)
        self._present = of_layers(layers, graph, decisions)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        bits = self._present.of(self._bits.effective(v), v)
        return whole(float(self._weights @ bits)) / self._total

    def products(self) -> ProductForm | None:
        """Returns the weighted sum of bits; none where a plan may leave layers in float32."""
        bits = self._bits.affine()
        if bits is None:
            return None
        block = Block(self._weights, (bits, *self._present.factors()))
        return ProductForm((block,), divisor=self._total)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns 32."""
        return float(FLOAT_BITS)


class DensityCost(CostModel):
    """Share of the original network's weights that are there and not zero, without tables.

    Channels that are cut take their weights along, and so do branches that are left out: a layer
    with half of its input channels and a density of a half has a quarter of its weights.

    Args:
        graph: The network.
        decisions: All decisions in order.
        storage: Densities of the layers that no decision is about.

    Raises:
        ValueError: If the storage or a density decision names something that is not in the network.
    """

    name = "density"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        form = storage if storage is not None else StorageFormat()
        layers, full = with_weights(graph), graph.full()
        layers = [x for x in layers if x.kind != "embedding"]
        self._weights = LayerWeights(layers, graph, decisions)
        self._densities = LayerDensities(layers, graph, decisions, form.densities)
        self._total = max(float(sum(x.weights(full) for x in layers)), 1.0)
        self._present = of_layers(layers, graph, decisions)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        kept = float(self._present.of(self._weights.at(v)[1], v) @ self._densities.at(v))
        parts = self._densities.parts
        return whole(kept * parts) / (parts * self._total)  # one division, one rounding

    def products(self) -> ProductForm:
        """Returns the sum of weights times densities."""
        weights, parts = self._weights.block(), self._densities.parts
        factors = (*weights.factors, self._densities.affine(), *self._present.factors())
        block = Block(weights.weights, factors)
        return ProductForm((block,), parts=parts, divisor=parts * self._total)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns 1."""
        return 1.0


class DepthCost(CostModel):
    """Share of the original network's branches that are there.

    A branch within one that is left out is not. One of them has to stay: a network without any is
    a stem and a head.

    Args:
        graph: The network.
        decisions: All decisions in order; a branch that none is about is there.

    Raises:
        ValueError: If the network has no branches, or a decision is about another one.
    """

    name = "depth"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        if not graph.branches:
            raise ValueError(
                "Expected a network with branches for the cost depth, got one without."
            )
        self._present = of_branches(graph, decisions)
        self._ones: Array = np.ones(len(graph.branches))
        self.floor = 1.0 / len(self._ones)
        names = some([x.name for x in graph.branches])
        self.floor_reason = f"One of the branches has to stay: {names}."

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        return whole(float(self._present.of(self._ones, v).sum())) / len(self._ones)

    def products(self) -> ProductForm:
        """Returns the sum over branches."""
        block = Block(self._ones, self._present.factors())
        return ProductForm((block,), divisor=float(len(self._ones)))

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns 1."""
        return 1.0


COSTS: dict[str, Callable[[LayerGraph, Sequence[Decision], StorageFormat | None], CostModel]] = {
    "macs": lambda graph, decisions, _: MacsCost(graph, decisions),
    "params": ParamsCost,
    "bytes": BytesCost,
    "bops": BopsCost,
    "mean_bits": MeanBitsCost,
    "density": DensityCost,
}
"""Costs that every task has."""

FURTHER_COSTS: dict[
    str, Callable[[LayerGraph, Sequence[Decision], StorageFormat | None], CostModel]
] = {"depth": lambda graph, decisions, _: DepthCost(graph, decisions)}
"""Costs of the tasks that decide something of a kind that names them."""


def costs_for(decisions: Sequence[Decision]) -> tuple[str, ...]:
    """Returns the names of the costs that a task with these decisions has."""
    named = {name for d in decisions for name in d.kind.costs}
    return (*COSTS, *(name for name in FURTHER_COSTS if name in named))


@checked
def make_cost(
    name: str,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None = None,
) -> CostModel:
    """Builds the cost model of that name.

    Args:
        name: One of ``COSTS`` or ``FURTHER_COSTS``.
        graph: The network.
        decisions: All decisions in order.
        storage: How quantized layers are stored, for the costs that depend on it.

    Raises:
        ValueError: If the name is unknown.
    """
    known = COSTS | FURTHER_COSTS
    check_known("cost", name, sorted(known))
    return known[name](graph, decisions, storage)
