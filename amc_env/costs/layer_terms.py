"""Widths, weights and bits of all layers at once, as functions of the values of all decisions.

The vocabulary of the cost models: every class here is built once per network and maps a vector of
values, shape ``(n_decisions,)``, to one number per layer in a few microseconds.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from amc_env.costs.products import Affine, Block
from amc_env.costs.storage import FLOAT_BITS, OFF_BITS, StorageFormat
from amc_env.graph import LayerGraph, LayerSpec, Width
from amc_env.kinds import Quantity
from amc_env.plan import Decision

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# Widths between two grid points carry rounding errors, which must not open one more bucket.
_ROUNDING = 1e-9
_MAX_PARTS = 10_000


def columns(decisions: Sequence[Decision], quantity: Quantity) -> dict[str, int]:
    """Returns target -> index of the decision whose value is that quantity of it.

    Args:
        decisions: All decisions in order.
        quantity: What is asked for.

    Raises:
        ValueError: If two decisions say it of the same target.
    """
    found: dict[str, int] = {}
    for i, decision in enumerate(decisions):
        if decision.kind.quantity is quantity:
            if decision.target in found:
                raise ValueError(
                    f"Expected one decision about the {quantity} of {decision.target}, got "
                    f"{decisions[found[decision.target]].key} and {decision.key}."
                )
            found[decision.target] = i
    return found


class WidthMatrix:
    """Widths of many axes as one affine map: ``widths = matrix @ values + offset``."""

    def __init__(
        self, widths: Sequence[Width], graph: LayerGraph, decisions: Sequence[Decision]
    ) -> None:
        column = columns(decisions, Quantity.WIDTH)
        sizes = {group.name: group.size for group in graph.groups}
        self.matrix: Array = np.zeros((len(widths), len(decisions)))
        self.offset: Array = np.array([w.fixed for w in widths], dtype=np.float64)
        for row, width in enumerate(widths):
            for group, multiplier in width.terms:
                if group in column:
                    self.matrix[row, column[group]] += multiplier * sizes[group]
                else:  # no decision for this group, so it stays whole
                    self.offset[row] += multiplier * sizes[group]

    def at(self, values: Array) -> Array:
        """Returns the widths, shape ``(n_axes,)``."""
        return self.matrix @ values + self.offset

    def affine(self) -> Affine:
        """Returns the map."""
        return Affine(self.matrix, self.offset)


class LayerWeights:
    """Output widths and numbers of weights of layers.

    Args:
        layers: Layers with weights.
        graph: The network.
        decisions: All decisions in order.
    """

    def __init__(
        self, layers: Sequence[LayerSpec], graph: LayerGraph, decisions: Sequence[Decision]
    ) -> None:
        self._kernel: Array = np.array([math.prod(x.kernel) for x in layers], dtype=np.float64)
        self._inputs = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = WidthMatrix([x.out_width for x in layers], graph, decisions)

    def at(self, values: Array) -> tuple[Array, Array]:
        """Returns ``(output widths, weights)``, shape ``(n_layers,)`` each; zeros are counted."""
        outputs = self._outputs.at(values)
        return outputs, self._kernel * self._inputs.at(values) * outputs

    def block(self) -> Block:
        """Returns the numbers of weights as products of widths."""
        return Block(self._kernel, (self._inputs.affine(), self._outputs.affine()))

    def outputs(self) -> Affine:
        """Returns the output widths."""
        return self._outputs.affine()


class LayerDensities:
    """Shares of all layers' weights that are not zero.

    Args:
        layers: The layers asked about.
        graph: The network, for the names that exist.
        decisions: All decisions in order.
        fixed: Layer -> density where no decision says so; missing layers are dense.

    Raises:
        ValueError: If a name is not a layer of the network, or a density is not in (0, 1].
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        graph: LayerGraph,
        decisions: Sequence[Decision],
        fixed: Mapping[str, float],
    ) -> None:
        decided = columns(decisions, Quantity.DENSITY)
        self._n_decisions = len(decisions)
        check_names([*decided, *fixed], [x.name for x in graph.layers], Quantity.DENSITY)
        self.is_dense = not (decided or fixed)
        """Whether no layer is, or may be, sparse."""
        self.parts = _common_parts([c for i in decided.values() for c in decisions[i].choices])
        """How many equal parts of 1 all densities on the grids are multiples of, 1 if too many."""
        self._densities: Array = np.array([float(fixed.get(x.name, 1.0)) for x in layers])
        self._rows = np.array([i for i, x in enumerate(layers) if x.name in decided], dtype=np.intp)
        self._columns = np.array([decided[layers[i].name] for i in self._rows], dtype=np.intp)

    def at(self, values: Array) -> Array:
        """Returns the densities, shape ``(n_layers,)``."""
        densities = self._densities.copy()
        densities[self._rows] = values[self._columns]
        return densities

    def affine(self) -> Affine:
        """Returns the densities as a map of the values."""
        return _one_each(self._densities, self._rows, self._columns, self._n_decisions)


def _common_parts(values: Iterable[float]) -> int:
    """The least common denominator of ratios, 1 if there is no small one."""
    fractions = {value: Fraction(value).limit_denominator(_MAX_PARTS) for value in values}
    if any(abs(float(f) - value) > _ROUNDING for value, f in fractions.items()):
        return 1
    parts = math.lcm(*(f.denominator for f in fractions.values()))
    return parts if parts <= _MAX_PARTS else 1


class LayerBits:
    """Bits of all layers' weights, or of their inputs.

    A layer is quantized to ``q`` bits, or it is float32; a value between the largest number of
    bits on its grid and ``OFF_BITS`` is a mixture of both.

    Args:
        layers: The layers asked about.
        graph: The network, for the names that exist.
        decisions: All decisions in order.
        quantity: ``WEIGHT_BITS`` or ``ACTIVATION_BITS``.
        fixed: Layer -> bits where no decision says so; missing layers are float32.

    Raises:
        ValueError: If a name is not a layer of the network, or bits are off the scale.
    """

    def __init__(
        self,
        layers: Sequence[LayerSpec],
        graph: LayerGraph,
        decisions: Sequence[Decision],
        quantity: Quantity,
        fixed: Mapping[str, float],
    ) -> None:
        decided = columns(decisions, quantity)
        self._n_decisions = len(decisions)
        check_names([*decided, *fixed], [x.name for x in graph.layers], quantity)
        given = [float(fixed.get(x.name, 0.0)) if x.has_weights else 0.0 for x in layers]
        self._bits: Array = np.array([b if b < OFF_BITS else 0.0 for b in given])
        self._rows = np.array([i for i, x in enumerate(layers) if x.name in decided], dtype=np.intp)
        self._columns = np.array([decided[layers[i].name] for i in self._rows], dtype=np.intp)
        tops = [_largest_quantized(decisions[i]) for i in self._columns]
        self._tops: Array = np.array(tops, dtype=np.float64)
        self._bits[self._rows] = self._tops
        self._may_be_off = any(decisions[i].choices[-1] >= OFF_BITS for i in self._columns)
        self._per_bit: Array = np.array([1.0 / (OFF_BITS - top) for top in tops])
        self._off: Array = (self._bits == 0.0).astype(np.float64)
        self.may_quantize: Array = 1.0 - self._off
        """1 for the layers that some plan quantizes, shape ``(n_layers,)``."""

    @property
    def is_float(self) -> bool:
        """Whether no plan quantizes any layer."""
        return not self.may_quantize.any()

    def at(self, values: Array) -> tuple[Array, Array]:
        """Returns ``(bits if quantized, share of float32)``, shape ``(n_layers,)`` each."""
        bits, off = self._bits.copy(), self._off.copy()
        requested = values[self._columns]
        quantized = np.minimum(requested, self._tops)
        bits[self._rows] = quantized
        off[self._rows] = (requested - quantized) * self._per_bit
        return bits, off

    def effective(self, values: Array) -> Array:
        """Returns bits per number, 32 for float32, shape ``(n_layers,)``."""
        bits, off = self.at(values)
        return bits + off * (FLOAT_BITS - bits)

    def affine(self) -> Affine | None:
        """Returns bits per number, 32 for float32, as a map; None if a plan decides on float32."""
        if self._may_be_off:
            return None
        bits = self._bits + self._off * (FLOAT_BITS - self._bits)
        return _one_each(bits, self._rows, self._columns, self._n_decisions)


def _one_each(fixed: Array, rows: Index, columns: Index, n_decisions: int) -> Affine:
    """The values of some decisions, one per row, between numbers that are fixed."""
    matrix, offset = np.zeros((len(fixed), n_decisions)), fixed.copy()
    matrix[rows, columns], offset[rows] = 1.0, 0.0
    return Affine(matrix, offset)


def _largest_quantized(decision: Decision) -> float:
    """The largest number of bits on the grid that is not "off", 0 if there is none."""
    return max((choice for choice in decision.choices if choice < OFF_BITS), default=0.0)


def check_names(given: Iterable[str], known: Sequence[str], what: str) -> None:
    """Rejects names that are not in the network.

    Raises:
        ValueError: If there is one.
    """
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(
            f"The {what} of {unknown} are given, but the network has no such names; it has "
            f"{sorted(known)}."
        )


class Buckets:
    """How many scales or codebooks the quantized weights of each layer need.

    Args:
        storage: How layers are stored.
        layers: Those asked about.
    """

    def __init__(self, storage: StorageFormat, layers: Sequence[LayerSpec]) -> None:
        self._is_table = np.array([x.kind == "embedding" for x in layers], dtype=bool)
        self._granularity = storage.granularity
        self._size = storage.bucket_size
        self._bytes = storage.bytes_per_bucket
        self._per_channel = storage.bytes_per_channel
        self._entry_bytes = FLOAT_BITS / 8 if storage.codebook else 0.0

    def bytes(self, outputs: Array, weights: Array, bits: Array) -> Array:
        """Returns the bytes besides the codes, shape ``(n_layers,)``."""
        per_bucket = (
            self._bytes + self._entry_bytes * np.exp2(bits) if self._entry_bytes else (self._bytes)
        )
        per_layer = outputs * self._per_channel
        if self._granularity == "channel":
            return outputs * per_bucket + per_layer
        if self._granularity == "tensor":
            return np.ones_like(outputs) * per_bucket + per_layer
        if self._granularity == "group":
            inputs = weights / np.maximum(outputs, 1.0)
            rows = np.where(self._is_table, inputs, outputs)
            columns = np.where(self._is_table, outputs, inputs)
            return rows * np.ceil(columns / self._size - _ROUNDING) * per_bucket + per_layer
        return np.ceil(weights / self._size - _ROUNDING) * per_bucket + per_layer

    def per_output(self) -> tuple[float, float] | None:
        """Returns the bytes per output and per layer, None if they depend on anything else."""
        if self._entry_bytes or self._granularity not in ("channel", "tensor"):
            return None
        if self._granularity == "channel":
            return self._bytes + self._per_channel, 0.0
        return self._per_channel, self._bytes
