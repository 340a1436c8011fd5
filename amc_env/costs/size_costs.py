"""Size costs of a plan: parameters and bytes."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from amc_env.costs.cost_model import Array, CostModel, checked_folding, largest, whole, with_weights
from amc_env.costs.layer_terms import (
    Buckets,
    LayerBits,
    LayerDensities,
    LayerWeights,
    WidthMatrix,
    columns,
)
from amc_env.costs.presence import ChannelNumbers, Constants, of_branches, of_layers
from amc_env.costs.products import Block, ProductForm
from amc_env.costs.sparse_form import SparseForm
from amc_env.costs.storage import StorageFormat
from amc_env.graph import Branch, LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision

BYTES_PER_FLOAT = 4
_BITS_PER_BYTE = 8
# A batch norm counts its batches in one int64, which the graph lists among other buffers.
_BYTES_PER_COUNTER = 8


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
        layers = with_weights(graph)
        folded = checked_folding(graph, storage)
        self._factor: Array = np.array([math.prod(x.kernel) for x in layers], dtype=np.float64)
        self._bias: Array = np.array(
            [x.has_bias or x.name in folded.values() for x in layers], dtype=np.float64
        )
        self._inputs = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = WidthMatrix([x.out_width for x in layers], graph, decisions)
        densities = storage.densities if storage is not None else {}
        self._densities = LayerDensities(layers, graph, decisions, densities)
        extras = [x for x in graph.channel_parameters if x.name not in folded]
        self._channels = ChannelNumbers(extras, graph, decisions)
        self._per_channel: Array = np.array([x.n_parameters for x in extras], dtype=np.float64)
        own = [b.other_parameters for b in graph.branches]
        self._other = Constants(graph.other_parameters, (own, of_branches(graph, decisions)))
        self._present = of_layers(layers, graph, decisions)
        changed = bool(folded or densities)
        self._unchanged = ParamsCost(graph, decisions) if changed else self

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        outputs = self._present.of(self._outputs.at(v), v)
        kept = self._inputs.at(v) * outputs * self._densities.at(v)
        weights = self._factor @ kept + self._bias @ outputs
        total = weights + self._per_channel @ self._channels.at(v) + self._other.at(v)
        return whole(float(total), self._densities.parts)

    def products(self) -> ProductForm:
        """Returns the sums over layers and over what has parameters per channel."""
        inputs, outputs = self._inputs.affine(), (self._outputs.affine(), *self._present.factors())
        blocks = (
            Block(self._factor, (inputs, *outputs, self._densities.affine())),
            Block(self._bias, outputs),
            Block(self._per_channel, self._channels.factors()),
            *self._other.blocks(),
        )
        parts = self._densities.parts
        return ProductForm(blocks, self._other.always, parts, float(parts))

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the number with all channels, all weights, before any norm is folded."""
        return self._unchanged(largest(decisions))


class FloatBytesCost(CostModel):
    """Bytes of all tensors stored in float32: parameters and buffers, without a file header.

    Zeros are stored like other numbers.
    """

    name = "bytes"
    unit = "B"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        extras = graph.channel_parameters
        self._params = ParamsCost(graph, decisions)
        self._channels = ChannelNumbers(extras, graph, decisions)
        self._per_channel: Array = np.array([x.n_buffers for x in extras], dtype=np.float64)
        own = [b.other_buffer_bytes for b in graph.branches]
        self._other = Constants(graph.other_buffer_bytes, (own, of_branches(graph, decisions)))
        self._densities = [*columns(decisions, Quantity.DENSITY).values()]

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.array(values, dtype=np.float64)
        v[self._densities] = 1.0
        buffers = self._per_channel @ self._channels.at(v)
        return whole(float(BYTES_PER_FLOAT * (self._params(v) + buffers) + self._other.at(v)))

    def products(self) -> ProductForm | None:
        """Returns four bytes for each number; none where densities are decided: 1 counts."""
        if self._densities:
            return None
        params = self._params.products()
        blocks = [Block(BYTES_PER_FLOAT * weights, x) for weights, x in params.blocks]
        buffers = Block(BYTES_PER_FLOAT * self._per_channel, self._channels.factors())
        constant = BYTES_PER_FLOAT * params.constant + self._other.always
        return ProductForm((*blocks, buffers, *self._other.blocks()), constant)


class BytesCost(CostModel):
    """Bytes of all stored tensors: codes and scales of quantized layers, float32 for the rest.

    Where densities are decided (or the storage has some), the weights of all layers are stored as
    in a sparse network: places of the non-zeros and their values, all entropy-coded.

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
    unit = "B"

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        self._float = FloatBytesCost(graph, decisions)
        form = storage if storage is not None else StorageFormat()
        layers = with_weights(graph)
        self._bits = LayerBits(layers, graph, decisions, Quantity.WEIGHT_BITS, form.weight_bits)
        densities = LayerDensities(layers, graph, decisions, form.densities)
        self._densities = densities
        fixed = {x.name for x in layers} - columns(decisions, Quantity.DENSITY).keys()
        self._sparse = None if densities.is_dense else SparseForm(layers, form, fixed)
        self._is_float = storage is None and self._bits.is_float and self._sparse is None
        folded = checked_folding(graph, storage)
        extras = [x for x in graph.channel_parameters if x.name not in folded]
        with_counter = [
            x.name for x in graph.channel_parameters if x.name in folded and x.n_buffers
        ]
        counters = min(_BYTES_PER_COUNTER * len(set(with_counter)), graph.other_buffer_bytes)
        own = [
            BYTES_PER_FLOAT * b.other_parameters + _buffer_bytes(b, graph, {*with_counter})
            for b in graph.branches
        ]
        self._weights = LayerWeights(layers, graph, decisions)
        self._buckets = Buckets(form, layers)
        self._bias: Array = BYTES_PER_FLOAT * np.array(
            [x.has_bias or x.name in folded.values() for x in layers], dtype=np.float64
        )
        self._channels = ChannelNumbers(extras, graph, decisions)
        self._per_channel: Array = BYTES_PER_FLOAT * np.array(
            [x.n_parameters + x.n_buffers for x in extras], dtype=np.float64
        )
        self._present = of_layers(layers, graph, decisions)
        per_layer = form.bytes_per_layer * self._bits.may_quantize
        constant = (
            BYTES_PER_FLOAT * graph.other_parameters
            + (graph.other_buffer_bytes - counters)
            + form.fixed_bytes
            + form.bytes_per_layer * float(self._bits.may_quantize.sum())
        )
        branches = of_branches(graph, decisions)
        self._other = Constants(constant, (per_layer, self._present), (own, branches))

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        return self._bytes(values, exact=False)

    def predict(self, values: Sequence[float] | Array) -> float:
        """Returns the bytes themselves, which may fall when a value grows.

        They do in sparse networks of few bits with most of their weights, where budgets count
        more (see :class:`~amc_env.costs.sparse_form.SparseForm`); else both are the same.
        """
        return self._bytes(values, exact=True)

    def _bytes(self, values: Sequence[float] | Array, *, exact: bool) -> float:
        if self._is_float:
            return self._float(values)
        v = np.asarray(values, dtype=np.float64)
        outputs, weights = self._weights.at(v)
        bits, off = self._bits.at(v)
        scales = self._bits.may_quantize * self._buckets.bytes(outputs, weights, bits)
        codes, floats = weights * bits / 8, BYTES_PER_FLOAT * weights
        if self._sparse is not None:
            densities = self._densities.at(v)
            codes, floats = self._sparse.bytes(weights, densities, bits, off, exact=exact)
        quantized = self._bits.may_quantize * codes + scales
        stored = quantized + off * np.maximum(floats - quantized, 0.0)
        stored = self._present.of(stored, v)
        rest = self._bias @ self._present.of(outputs, v) + self._per_channel @ self._channels.at(v)
        return whole(float(stored.sum() + rest + self._other.at(v)), _BITS_PER_BYTE)

    def products(self) -> ProductForm | None:
        """Returns codes, scales and floats as products.

        Codebooks, scales per bucket, sparse layers, and layers that a plan may leave in float32 or
        quantize have other bytes.
        """
        if self._is_float:
            return self._float.products()
        bits, scales = self._bits.affine(), self._buckets.per_output()
        if self._sparse is not None or bits is None or scales is None:
            return None
        quantized, weights, outputs = (
            self._bits.may_quantize,
            self._weights.block(),
            self._weights.outputs(),
        )
        present = self._present.factors()
        scale_each = Constants(
            scales[1] * float(quantized.sum()), (scales[1] * quantized, self._present)
        )
        # What is not quantized has 32 bits there.
        codes = Block(weights.weights / _BITS_PER_BYTE, (*weights.factors, bits, *present))
        blocks = (
            codes,
            Block(quantized * scales[0] + self._bias, (outputs, *present)),
            Block(self._per_channel, self._channels.factors()),
            *self._other.blocks(),
            *scale_each.blocks(),
        )
        constant = self._other.always + scale_each.always
        return ProductForm(blocks, constant, _BITS_PER_BYTE, float(_BITS_PER_BYTE))

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the bytes with all channels, in float32, before any norm is folded."""
        return self._float.original(decisions)


def _buffer_bytes(branch: Branch, graph: LayerGraph, without_counter: set[str]) -> int:
    """A branch's bytes of buffers that no group controls, without counters of folded norms.

    A norm within an inner branch is one of that branch.
    """
    inner = [b for b in graph.branches if set(b.layers) < set(branch.layers)]
    own = set(branch.channel_parameters).difference(*(b.channel_parameters for b in inner))
    return max(branch.other_buffer_bytes - _BYTES_PER_COUNTER * len(own & without_counter), 0)
