"""Cost of a plan from a measured table: latency, energy or any other quantity.

Every layer's table is read at the plan's widths (bilinear between the measured ones) and bits,
and the layers are summed. Budgets are exact only for costs that never fall when a decision grows,
but measured costs do: eight channels can be slower than sixteen. :class:`TableCost` therefore has
two answers, what was measured and, for budgets, the least monotone cost above it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amc_env.costs.cost_table import (
    CostTable,
    CostTableError,
    LayerTable,
    measured_layers,
    precision_bits,
)
from amc_env.costs.costs import CostModel
from amc_env.costs.layer_terms import WidthMatrix, check_names, columns
from amc_env.costs.presence import of_layers
from amc_env.costs.storage import FLOAT_BITS, OFF_BITS, StorageFormat
from amc_env.graph import LayerGraph, LayerSpec, Width
from amc_env.kinds import Quantity
from amc_env.plan import Decision
from amc_env.validation.checks import checked

Array = npt.NDArray[np.float64]
Index = npt.NDArray[np.intp]

# Bits carry no rounding errors worth a whole precision.
_ROUNDING = 1e-6


@checked
class TableCost(CostModel):
    """The sum of the table's costs over all layers, plus its constant.

    Called, it never falls when a decision grows: where a layer is cheaper with more channels or
    more bits that plans may choose, the fewer ones' cost holds for both. :meth:`predict` is the
    sum of the measured values themselves.

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
        self.unit = table.unit
        self.table = table
        layers = measured_layers(graph)
        self._in_width = WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._out_width = WidthMatrix([x.out_width for x in layers], graph, decisions)
        storage = storage or StorageFormat()
        self._weights = _Bits(graph, decisions, Quantity.WEIGHT_BITS, storage.weight_bits, table, 0)
        self._activations = _Bits(
            graph, decisions, Quantity.ACTIVATION_BITS, storage.activation_bits, table, 1
        )
        self._present = of_layers(layers, graph, decisions)
        self._measured, self._budgeted = self._surfaces(layers, graph, decisions)
        self._constant = table.constant
        full = graph.full()
        whole = self._measured.at(
            np.array([x.in_width.at(full) for x in layers]),
            np.array([x.out_width.at(full) for x in layers]),
            np.full(len(layers), len(self._weights.levels) - 1),
            np.full(len(layers), len(self._activations.levels) - 1),
        )
        self._original = self._constant + float(np.sum(whole))

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        return self._read(self._budgeted, values)

    def predict(self, values: Sequence[float] | Array) -> float:
        """Returns the sum of the measured values, which may fall when a decision grows."""
        return self._read(self._measured, values)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns what the whole network costs in the highest precision of the table."""
        return self._original

    def _read(self, surface: _Surface, values: Sequence[float] | Array) -> float:
        v = np.asarray(values, dtype=np.float64)
        layers = surface.at(
            self._in_width.at(v),
            self._out_width.at(v),
            self._weights.at(v),
            self._activations.at(v),
        )
        return self._constant + float(np.sum(self._present.of(layers, v)))

    def _surfaces(
        self, layers: Sequence[LayerSpec], graph: LayerGraph, decisions: Sequence[Decision]
    ) -> tuple[_Surface, _Surface]:
        measured, budgeted = [], []
        for row, layer in enumerate(layers):
            table = self.table.layers[layer.name]
            values = self._by_levels(table)
            measured.append(((*table.in_widths,), (*table.out_widths,), values))
            inputs = _reachable(layer.in_width, table.in_widths, graph, decisions)
            outputs = _reachable(layer.out_width, table.out_widths, graph, decisions)
            values = np.einsum(
                "pi,waij,qj->wapq", interpolation_shares(inputs, table.in_widths), values,
                interpolation_shares(outputs, table.out_widths),
            )  # fmt: skip
            # What no plan can have must not raise the cost of what it can have.
            values[~self._weights.reachable[row]] = 0.0
            values[:, ~self._activations.reachable[row]] = 0.0
            for axis in range(4):
                values = np.maximum.accumulate(values, axis=axis)
            budgeted.append((inputs, outputs, values))
        return _Surface(measured), _Surface(budgeted)

    def _by_levels(self, layer: LayerTable) -> Array:
        """Returns a layer's costs, shape (weight levels, activation levels, inputs, outputs)."""
        by_bits = {precision_bits(name): values for name, values in layer.values.items()}
        rows = []
        for weight in self._weights.levels:
            row = []
            for activation in self._activations.levels:
                enough = [b for b in by_bits if b[0] >= weight and b[1] >= activation]
                if not enough:
                    raise CostTableError(
                        f"The cost table lacks a precision of at least {weight:g}-bit weights and "
                        f"{activation:g}-bit activations for {layer.name}; add one, e.g. fp32."
                    )
                row.append(by_bits[min(enough, key=lambda b: (b[0] * b[1], b))])
            rows.append(row)
        return np.array(rows, dtype=np.float64)


def _reachable(
    width: Width, points: Sequence[int], graph: LayerGraph, decisions: Sequence[Decision]
) -> tuple[float, ...]:
    """Returns the widths that plans can have nearest to the measured ones, with both ends.

    With ``round_to=16``, a bump at 24 channels has no effect.
    """
    ratios = {n: decisions[i].choices for n, i in columns(decisions, Quantity.WIDTH).items()}
    sizes = {group.name: group.size for group in graph.groups}
    fixed = width.fixed + sum(m * sizes[n] for n, m in width.terms if n not in ratios)
    terms = [(m * sizes[n], ratios[n]) for n, m in width.terms if n in ratios]
    if len(terms) == 1:
        ((scale, choices),) = terms
        widths = np.array([fixed + scale * choice for choice in choices])
    else:  # many sums: the measured points within reach stand for them
        ends = [fixed + sum(s * c[end] for s, c in terms) for end in (0, -1)]
        widths = np.array([*ends, *(p for p in points if ends[0] < p < ends[1])])
    near = {float(widths[np.argmin(np.abs(widths - point))]) for point in points}
    return tuple(sorted(near | {float(widths.min()), float(widths.max())}))


def interpolation_shares(values: Sequence[float] | Array, points: Sequence[int]) -> Array:
    """Returns how much of each value interpolation takes from each point: rows that sum to 1."""
    unit = np.eye(len(points))
    return np.stack([np.interp(values, points, row) for row in unit], axis=1)


class _Surface:
    """The tables of all layers in one array, read at once.

    Args:
        tables: Per layer input widths, output widths and values, shape (weight levels,
            activation levels, inputs, outputs); layers may have different numbers of widths.
    """

    def __init__(
        self, tables: Sequence[tuple[tuple[float, ...], tuple[float, ...], Array]]
    ) -> None:
        self._inputs = _Axis([inputs for inputs, _, _ in tables])
        self._outputs = _Axis([outputs for _, outputs, _ in tables])
        padded = np.stack([self._padded(values) for _, _, values in tables])
        self._flat: Array = padded.reshape(-1)
        self._shape = padded.shape
        self._first: Index = np.arange(len(tables)) * int(np.prod(padded.shape[1:]))

    def _padded(self, values: Array) -> Array:
        n_in, n_out = values.shape[2:]
        spare = ((0, self._inputs.points - n_in), (0, self._outputs.points - n_out))
        return np.pad(values, ((0, 0), (0, 0), *spare), mode="edge")

    def at(self, in_width: Array, out_width: Array, weight: Index, activation: Index) -> Array:
        """Returns the numbers of all layers, each at its own widths and precision."""
        i, t = self._inputs.locate(in_width)
        j, u = self._outputs.locate(out_width)
        _, _, n_activations, n_in, n_out = self._shape
        start = ((weight * n_activations + activation) * n_in + i) * n_out + j + self._first
        flat = self._flat
        low = flat[start] * (1 - u) + flat[start + 1] * u
        high = flat[start + n_out] * (1 - u) + flat[start + n_out + 1] * u
        numbers: Array = low * (1 - t) + high * t
        return numbers


class _Axis:
    """The widths of all layers along one axis, padded to equally many."""

    def __init__(self, widths: Sequence[tuple[float, ...]]) -> None:
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

    def locate(self, width: Array) -> tuple[Index, Array]:
        """Returns the point below each width, and how far it is to the next one, 0 to 1."""
        index = np.minimum((self._next <= width[:, None]).sum(axis=1), self._last)
        share = (width - self._start[self._rows, index]) * self._inverse[self._rows, index]
        return index, np.clip(share, 0.0, 1.0)


class _Bits:
    """The levels of bits in a table, and which of them every layer has under a plan.

    Args:
        graph: The network.
        decisions: What plans decide, in order.
        quantity: ``WEIGHT_BITS`` or ``ACTIVATION_BITS``.
        fixed: Layer -> bits where no decision says so.
        table: The table.
        side: 0 for weights, 1 for activations.
    """

    def __init__(
        self,
        graph: LayerGraph,
        decisions: Sequence[Decision],
        quantity: Quantity,
        fixed: Mapping[str, float],
        table: CostTable,
        side: int,
    ) -> None:
        check_names(fixed, [x.name for x in graph.layers], quantity)
        names = [layer.name for layer in measured_layers(graph)]
        self.levels: Array = np.array(
            sorted({float(precision_bits(name)[side]) for name in table.precisions})
        )
        column = columns(decisions, quantity)
        self._rows = np.array([r for r, n in enumerate(names) if n in column], dtype=np.intp)
        self._columns = np.array([column[n] for n in names if n in column], dtype=np.intp)
        self._fixed = _counted(np.array([float(fixed.get(n, FLOAT_BITS)) for n in names]))
        self.reachable = np.zeros((len(names), len(self.levels)), dtype=bool)
        for row, name in enumerate(names):
            bits = self._fixed[row : row + 1]
            if name in column:
                bits = _counted(np.array(decisions[column[name]].choices))
            if bits.max() > self.levels[-1]:
                raise CostTableError(
                    f"The cost table ends at {self.levels[-1]:g} {quantity.replace('_', ' ')}, "
                    f"but {name} may have {bits.max():g}; measure that precision too (e.g. fp32), "
                    f"or decide fewer bits."
                )
            self.reachable[row, np.searchsorted(self.levels, bits)] = True

    def at(self, values: Array) -> Index:
        """Returns the level of every layer: the least one with enough bits."""
        bits = self._fixed.copy()
        bits[self._rows] = _counted(values[self._columns])
        return np.searchsorted(self.levels, bits - _ROUNDING)


def _counted(bits: Array) -> Array:
    """Returns the bits as costs count them: float32 for whatever is not quantized."""
    result: Array = np.where(bits >= OFF_BITS, float(FLOAT_BITS), bits)
    return result


def load_cost_models(
    paths: Sequence[str | Path],
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None = None,
) -> dict[str, CostModel]:
    """Reads tables as costs for budgets: ``{"latency": ..., "energy": ...}``.

    Args:
        paths: Tables of different quantities.
        graph: The network.
        decisions: What plans decide, in order.
        storage: Bits of layers that no decision is about.

    Raises:
        CostTableError: If a table does not fit, or two are about the same quantity.
    """
    models: dict[str, CostModel] = {}
    for path in paths:
        table = CostTable.read(path)
        if table.quantity in models:
            raise CostTableError(
                f"Expected one table per quantity, got two of {table.quantity}; {path} is the "
                f"second."
            )
        models[table.quantity] = TableCost(table, graph, decisions, storage)
    return models
