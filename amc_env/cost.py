"""What a plan costs: pure arithmetic on graph facts, no network is touched.

A cost model maps the values of all decisions (in decision order) to a number and never decreases
when a value grows; the budget's exactness rests on that monotonicity.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from amc_env.graph import LayerGraph, LayerSpec
from amc_env.layer_terms import (
    Buckets,
    LayerBits,
    LayerDensities,
    LayerWeights,
    WidthMatrix,
    check_names,
)
from amc_env.plan import Decision, DecisionKind
from amc_env.storage import FLOAT_BITS, StorageFormat

Array = npt.NDArray[np.float64]

BYTES_PER_FLOAT = 4
# A batch norm counts its batches in one int64, which the graph lists among other buffers.
_BYTES_PER_COUNTER = 8


class CostModel(ABC):
    """A number that every plan has: MACs, parameters, bytes, milliseconds, ..."""

    name: str

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
        return float(self(_largest(decisions)))


def original_cost(
    cost: Callable[[Sequence[float] | Array], float], decisions: Sequence[Decision]
) -> float:
    """Returns what ratios of a cost refer to; a plain function has its largest plan's cost."""
    if isinstance(cost, CostModel):
        return cost.original(decisions)
    return float(cost(_largest(decisions)))


def _largest(decisions: Sequence[Decision]) -> Array:
    """The values that leave the network as it is; a density that ends below 1 is none of them."""
    ends = [1.0 if d.kind is DecisionKind.DENSITY else d.choices[-1] for d in decisions]
    return np.array(ends, dtype=np.float64)


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

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        return float(self._factor @ (self._inputs.at(v) * self._outputs.at(v)))

    def per_layer(self, values: Array) -> Array:
        """Returns the multiply-adds of each layer, shape ``(n_layers,)``."""
        return self._factor * self._inputs.at(values) * self._outputs.at(values)


class ParamsCost(CostModel):
    """Learned numbers: weights, biases, affine parameters of normalisations.

    Of a sparse layer the weights that are not zero count.

    Args:
        graph: The network.
        decisions: All decisions in order.
        storage: Its folded norms have no parameters; the layers before them have a bias.
    """

    name = "params"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        layers = _with_weights(graph)
        folded = _checked_folding(graph, storage)
        self._factor: Array = np.array([math.prod(x.kernel) for x in layers], dtype=np.float64)
        self._bias: Array = np.array(
            [x.has_bias or x.name in folded.values() for x in layers], dtype=np.float64
        )
        self._inputs = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = WidthMatrix([x.out_width for x in layers], graph, decisions)
        densities = storage.densities if storage is not None else {}
        self._densities = LayerDensities(layers, graph, decisions, densities)
        extras = [x for x in graph.channel_parameters if x.name not in folded]
        self._channels = WidthMatrix([x.width for x in extras], graph, decisions)
        self._per_channel: Array = np.array([x.n_parameters for x in extras], dtype=np.float64)
        self._other = graph.other_parameters
        changed = bool(folded or densities)
        self._unchanged = ParamsCost(graph, decisions) if changed else self

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        outputs = self._outputs.at(v)
        kept = self._inputs.at(v) * outputs * self._densities.at(v)
        weights = self._factor @ kept + self._bias @ outputs
        return float(weights + self._per_channel @ self._channels.at(v) + self._other)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the number with all channels, all weights, before any norm is folded."""
        return self._unchanged(_largest(decisions))


class FloatBytesCost(CostModel):
    """Bytes of all tensors stored in float32: parameters and buffers, without a file header."""

    name = "bytes"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        extras = graph.channel_parameters
        self._params = ParamsCost(graph, decisions)
        self._channels = WidthMatrix([x.width for x in extras], graph, decisions)
        self._per_channel: Array = np.array([x.n_buffers for x in extras], dtype=np.float64)
        self._other = graph.other_buffer_bytes

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        buffers = self._per_channel @ self._channels.at(v)
        return float(BYTES_PER_FLOAT * (self._params(v) + buffers) + self._other)


class BytesCost(CostModel):
    """Bytes of all stored tensors: codes and scales of quantized layers, float32 for the rest.

    A layer for which float32 would be smaller than its quantized form (few weights, large
    codebook) counts as much as quantized when its bits are "off": a cost must not decrease, and
    so the budget errs on the safe side.

    Args:
        graph: The network.
        decisions: All decisions in order; keep ratios and bits multiply.
        storage: The format of quantized layers. Without it, and without bit decisions, every
            tensor is float32.

    Raises:
        ValueError: If the storage or a bit decision names something that is not in the network.
    """

    name = "bytes"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        self._float = FloatBytesCost(graph, decisions)
        form = storage if storage is not None else StorageFormat()
        layers = _with_weights(graph)
        self._bits = LayerBits(layers, graph, decisions, DecisionKind.WEIGHT_BITS, form.weight_bits)
        self._is_float = storage is None and self._bits.is_float
        folded = _checked_folding(graph, storage)
        extras = [x for x in graph.channel_parameters if x.name not in folded]
        with_counter = [
            x.name for x in graph.channel_parameters if x.name in folded and x.n_buffers
        ]
        counters = min(_BYTES_PER_COUNTER * len(set(with_counter)), graph.other_buffer_bytes)
        self._weights = LayerWeights(layers, graph, decisions)
        self._buckets = Buckets(form)
        self._bias: Array = BYTES_PER_FLOAT * np.array(
            [x.has_bias or x.name in folded.values() for x in layers], dtype=np.float64
        )
        self._channels = WidthMatrix([x.width for x in extras], graph, decisions)
        self._per_channel: Array = BYTES_PER_FLOAT * np.array(
            [x.n_parameters + x.n_buffers for x in extras], dtype=np.float64
        )
        self._constant = (
            BYTES_PER_FLOAT * graph.other_parameters
            + (graph.other_buffer_bytes - counters)
            + form.fixed_bytes
            + form.bytes_per_layer * float(self._bits.may_quantize.sum())
        )

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        if self._is_float:
            return self._float(values)
        v = np.asarray(values, dtype=np.float64)
        outputs, weights = self._weights.at(v)
        bits, off = self._bits.at(v)
        scales = self._bits.may_quantize * self._buckets.bytes(outputs, weights, bits)
        quantized = weights * bits / 8 + scales
        stored = quantized + off * np.maximum(BYTES_PER_FLOAT * weights - quantized, 0.0)
        rest = self._bias @ outputs + self._per_channel @ self._channels.at(v)
        return float(stored.sum() + rest + self._constant)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the bytes with all channels, in float32, before any norm is folded."""
        return self._float.original(decisions)


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
            layers, graph, decisions, DecisionKind.WEIGHT_BITS, form.weight_bits
        )
        self._activation_bits = LayerBits(
            layers, graph, decisions, DecisionKind.ACTIVATION_BITS, form.activation_bits
        )

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        bits = self._weight_bits.effective(v) * self._activation_bits.effective(v)
        return float(self._macs.per_layer(v) @ bits)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns ``MACs * 32 * 32`` with all channels."""
        return FLOAT_BITS * FLOAT_BITS * self._macs.original(decisions)


class MeanBitsCost(CostModel):
    """Bits per weight, averaged over the weights of the original network.

    "Equivalent to k bits". Cut channels keep their share in the average, so that the number speaks
    of bits alone.

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
        layers, full = _with_weights(graph), graph.full()
        self._bits = LayerBits(layers, graph, decisions, DecisionKind.WEIGHT_BITS, form.weight_bits)
        self._weights: Array = np.array([x.weights(full) for x in layers], dtype=np.float64)
        self._total = max(float(self._weights.sum()), 1.0)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        return float(self._weights @ self._bits.effective(v)) / self._total

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns 32."""
        return float(FLOAT_BITS)


class DensityCost(CostModel):
    """Share of the original network's weights (of its layers) that are there and not zero.

    Channels that are cut take their weights along: a layer with half of its input channels and a
    density of a half has a quarter of its weights.

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
        layers, full = _with_weights(graph), graph.full()
        self._weights = LayerWeights(layers, graph, decisions)
        self._densities = LayerDensities(layers, graph, decisions, form.densities)
        self._total = max(float(sum(x.weights(full) for x in layers)), 1.0)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        return float(self._weights.at(v)[1] @ self._densities.at(v)) / self._total

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns 1."""
        return 1.0


def _with_weights(graph: LayerGraph) -> list[LayerSpec]:
    return [x for x in graph.layers if x.kind != "matmul"]


def _checked_folding(graph: LayerGraph, storage: StorageFormat | None) -> dict[str, str]:
    """Norm -> layer of the storage, all of them known to the graph."""
    folded = dict(storage.folded) if storage is not None else {}
    check_names(folded, [x.name for x in graph.channel_parameters], "folded norms")
    check_names(folded.values(), [x.name for x in _with_weights(graph)], "layers of folded norms")
    return folded


COSTS: dict[str, Callable[[LayerGraph, Sequence[Decision], StorageFormat | None], CostModel]] = {
    "macs": lambda graph, decisions, _: MacsCost(graph, decisions),
    "params": ParamsCost,
    "bytes": BytesCost,
    "bops": BopsCost,
    "mean_bits": MeanBitsCost,
    "density": DensityCost,
}


def make_cost(
    name: str,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None = None,
) -> CostModel:
    """Builds the cost model of that name.

    Args:
        name: One of ``COSTS``.
        graph: The network.
        decisions: All decisions in order.
        storage: How quantized layers are stored, for the costs that depend on it.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in COSTS:
        raise ValueError(f"Unknown cost {name!r}; expected one of {sorted(COSTS)}.")
    return COSTS[name](graph, decisions, storage)
