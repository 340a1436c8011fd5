"""The cost of a plan by a measured table: latency, energy, whatever the table holds.

Every layer's table is read at the plan's widths (bilinear between the measured ones) and bits,
and the layers are summed. Budgets are exact only for costs that never fall when a decision grows,
so what was measured is replaced by the nearest surface that does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amc_env.cost import CostModel
from amc_env.cost_table import (
    CostTable,
    CostTableError,
    LayerTable,
    measured_layers,
    precision_bits,
)
from amc_env.graph import LayerGraph
from amc_env.layer_terms import WidthMatrix, check_names
from amc_env.plan import Decision, DecisionKind
from amc_env.storage import FLOAT_BITS, OFF_BITS, StorageFormat

Array = npt.NDArray[np.float64]

# Bits carry no rounding errors worth a whole precision.
_ROUNDING = 1e-6


def monotone(values: Array, axes: tuple[int, ...]) -> Array:
    """Returns the surface nearest to ``values`` that never falls along ``axes``.

    It lies halfway between the least surface above the values and the greatest one below them:
    no monotone surface has a smaller largest distance to the values.

    Example:
        >>> monotone(np.array([1.0, 3.0, 2.0, 4.0]), (0,))
        array([1. , 2.5, 2.5, 4. ])
    """
    above, below = values, values
    for axis in axes:
        above = np.maximum.accumulate(above, axis=axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis=axis), axis)
    result: Array = (above + below) / 2
    return result


class TableCost(CostModel):
    """The sum over all layers of what the table says, plus its constant.

    A layer is computed in the precision with its bits; if the table has none, in the next higher
    one (with ``int8`` and ``fp32``: in ``int8`` where weights and activations have at most 8
    bits). Widths below the smallest measured one cost as much as that.

    Args:
        table: Complete, for this network.
        graph: The network.
        decisions: What plans decide, in order.
        storage: Bits of layers that no decision is about; 32 where it says nothing.

    Raises:
        CostTableError: If the table lacks a layer, a value or a precision.
    """

    def __init__(
        self,
        table: CostTable,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        storage: StorageFormat | None = None,
    ) -> None:
        table.check(graph)
        self.name = table.quantity
        self.table = table
        layers = measured_layers(graph)
        tables = [table.layers[layer.name] for layer in layers]
        self._inputs = _Axis([t.in_widths for t in tables])
        self._outputs = _Axis([t.out_widths for t in tables])
        self._in_width = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._out_width = WidthMatrix([x.out_width for x in layers], graph, decisions)
        names = [layer.name for layer in layers]
        storage = storage or StorageFormat()
        fixed = (storage.weight_bits, storage.activation_bits)
        check_names([*fixed[0], *fixed[1]], [x.name for x in graph.layers], "bits")
        self._weight_bits = _Bits(names, decisions, DecisionKind.WEIGHT_BITS, fixed[0])
        self._activation_bits = _Bits(names, decisions, DecisionKind.ACTIVATION_BITS, fixed[1])
        self._weight_levels, self._activation_levels = _levels(table)
        self._check_precisions()
        filled = np.stack([self._fill(t) for t in tables])
        self._flat: Array = filled.reshape(-1)
        self._shape = filled.shape
        self._first: npt.NDArray[np.intp] = np.arange(len(layers)) * int(np.prod(filled.shape[1:]))
        self._constant = table.constant
        self._original = self._uncompressed(graph)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        w = np.searchsorted(self._weight_levels, self._weight_bits.at(v) - _ROUNDING)
        a = np.searchsorted(self._activation_levels, self._activation_bits.at(v) - _ROUNDING)
        return self._sum(self._in_width.at(v), self._out_width.at(v), w, a)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the cost of the whole network in the highest precision of the table."""
        return self._original

    def moved(self) -> float:
        """Returns how far the monotone costs lie from the measured ones: mean of |change| / sum."""
        measured = changed = 0.0
        for layer in self.table.layers.values():
            for values in layer.values.values():
                measured += float(values.sum())
                changed += float(np.abs(monotone(values, (0, 1)) - values).sum())
        return changed / measured if measured else 0.0

    def _sum(
        self,
        in_width: Array,
        out_width: Array,
        weight: npt.NDArray[np.intp],
        activation: npt.NDArray[np.intp],
    ) -> float:
        i, t = self._inputs.locate(in_width)
        j, u = self._outputs.locate(out_width)
        _, _, n_activations, n_in, n_out = self._shape
        start = ((weight * n_activations + activation) * n_in + i) * n_out + j + self._first
        flat = self._flat
        low = flat[start] * (1 - u) + flat[start + 1] * u
        high = flat[start + n_out] * (1 - u) + flat[start + n_out + 1] * u
        return float(np.sum(low * (1 - t) + high * t)) + self._constant

    def _uncompressed(self, graph: LayerGraph) -> float:
        full = graph.full()
        specs = measured_layers(graph)
        inputs = np.array([x.in_width.at(full) for x in specs])
        outputs = np.array([x.out_width.at(full) for x in specs])
        last = np.full(len(specs), len(self._weight_levels) - 1)
        top = np.full(len(specs), len(self._activation_levels) - 1)
        return self._sum(inputs, outputs, last, top)

    def _check_precisions(self) -> None:
        for what, levels, bits in (
            ("weights", self._weight_levels, self._weight_bits),
            ("activations", self._activation_levels, self._activation_bits),
        ):
            if bits.highest > levels[-1]:
                raise CostTableError(
                    f"The cost table ends at {levels[-1]:g}-bit {what}, but plans may have "
                    f"{bits.highest:g} bits; measure that precision too (e.g. fp32), or decide "
                    f"fewer bits."
                )

    def _fill(self, layer: LayerTable) -> Array:
        """Returns one layer's costs, shape (weight levels, activation levels, K_in, K_out)."""
        n_in, n_out = self._inputs.points, self._outputs.points
        by_bits = {
            precision_bits(name): monotone(values, (0, 1)) for name, values in layer.values.items()
        }
        result = np.empty((len(self._weight_levels), len(self._activation_levels), n_in, n_out))
        for w, weight in enumerate(self._weight_levels):
            for a, activation in enumerate(self._activation_levels):
                enough = [b for b in by_bits if b[0] >= weight and b[1] >= activation]
                if not enough:
                    raise CostTableError(
                        f"The cost table lacks a precision of at least {weight:g}-bit weights and "
                        f"{activation:g}-bit activations for {layer.name}; add one, e.g. fp32."
                    )
                values = by_bits[min(enough, key=lambda b: (b[0] * b[1], b))]
                spare = ((0, n_in - values.shape[0]), (0, n_out - values.shape[1]))
                result[w, a] = np.pad(values, spare, mode="edge")
        # More bits never cost less, even where a kernel for few bits happens to be slow.
        result = np.maximum.accumulate(np.maximum.accumulate(result, axis=0), axis=1)
        return result


def _levels(table: CostTable) -> tuple[Array, Array]:
    bits = [precision_bits(name) for name in table.precisions]
    weights, activations = (sorted({float(pair[k]) for pair in bits}) for k in (0, 1))
    return np.array(weights), np.array(activations)


class _Axis:
    """The measured widths of all layers along one axis, padded to equally many."""

    def __init__(self, widths: Sequence[tuple[int, ...]]) -> None:
        self.points = max(2, *(len(w) for w in widths))
        shape = (len(widths), self.points - 1)
        self._next: Array = np.full(shape, np.inf)  # where each step ends; never reached: inf
        self._start: Array = np.zeros(shape)
        self._inverse: Array = np.zeros(shape)  # 1 / length of the step
        for row, points in enumerate(widths):
            steps = len(points) - 1
            self._next[row, :steps] = points[1:]
            self._start[row, :steps] = points[:-1]
            self._inverse[row, :steps] = 1.0 / np.diff(points)
        self._rows = np.arange(len(widths))
        self._last = np.array([max(len(w) - 2, 0) for w in widths])

    def locate(self, width: Array) -> tuple[npt.NDArray[np.intp], Array]:
        """Returns the measured point below each width, and how far it is to the next one (0..1)."""
        index = np.minimum((self._next <= width[:, None]).sum(axis=1), self._last)
        share = (width - self._start[self._rows, index]) * self._inverse[self._rows, index]
        return index, np.clip(share, 0.0, 1.0)


class _Bits:
    """The bits of every layer as plans decide them, or as they are fixed."""

    def __init__(
        self,
        names: Sequence[str],
        decisions: Sequence[Decision],
        kind: DecisionKind,
        fixed: Mapping[str, float],
    ) -> None:
        column = {d.target: i for i, d in enumerate(decisions) if d.kind is kind}
        self._rows = np.array([r for r, n in enumerate(names) if n in column], dtype=np.intp)
        self._columns = np.array([column[n] for n in names if n in column], dtype=np.intp)
        base = np.array([fixed.get(name, FLOAT_BITS) for name in names], dtype=np.float64)
        self._fixed: Array = np.where(base >= OFF_BITS, FLOAT_BITS, base)
        choices = [d.choices[-1] for d in decisions if d.kind is kind and d.target in names]
        undecided = [b for r, b in enumerate(self._fixed) if names[r] not in column]
        tops = [*(FLOAT_BITS if c >= OFF_BITS else c for c in choices), *undecided]
        self.highest = float(max(tops))

    def at(self, values: Array) -> Array:
        bits = self._fixed.copy()
        chosen = values[self._columns]
        bits[self._rows] = np.where(chosen >= OFF_BITS, FLOAT_BITS, chosen)
        return bits
