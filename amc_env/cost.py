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

from amc_env.graph import LayerGraph, Width
from amc_env.plan import Decision, DecisionKind

Array = npt.NDArray[np.float64]

BYTES_PER_FLOAT = 4


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


class _WidthMatrix:
    """Widths of many axes as one affine map: ``widths = matrix @ values + offset``."""

    def __init__(
        self, widths: Sequence[Width], graph: LayerGraph, decisions: Sequence[Decision]
    ) -> None:
        column = {d.target: i for i, d in enumerate(decisions) if d.kind is DecisionKind.KEEP_RATIO}
        sizes = {group.name: group.size for group in graph.groups}
        self.matrix: Array = np.zeros((len(widths), len(decisions)))
        self.offset: Array = np.array([w.fixed for w in widths], dtype=np.float64)
        for row, width in enumerate(widths):
            for group, multiplier in width.terms:
                if group in column:
                    self.matrix[row, column[group]] += multiplier * sizes[group]
                else:  # nobody decides about this group, so it stays whole
                    self.offset[row] += multiplier * sizes[group]

    def at(self, values: Array) -> Array:
        return self.matrix @ values + self.offset


class MacsCost(CostModel):
    """Multiply-adds for one image (FLOPs = 2 x MACs); biases and activations are not counted."""

    name = "macs"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        layers = graph.layers
        self._factor: Array = np.array([x.positions * math.prod(x.kernel) for x in layers], float)
        self._inputs = _WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = _WidthMatrix([x.out_width for x in layers], graph, decisions)

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        return float(self._factor @ (self._inputs.at(v) * self._outputs.at(v)))


class ParamsCost(CostModel):
    """Learned numbers: weights, biases, affine parameters of normalisations."""

    name = "params"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        layers = [x for x in graph.layers if x.kind != "matmul"]
        self._factor: Array = np.array([math.prod(x.kernel) for x in layers], dtype=np.float64)
        self._bias: Array = np.array([x.has_bias for x in layers], dtype=np.float64)
        self._inputs = _WidthMatrix([x.in_width for x in layers], graph, decisions)
        self._outputs = _WidthMatrix([x.out_width for x in layers], graph, decisions)
        extras = graph.channel_parameters
        self._channels = _WidthMatrix([x.width for x in extras], graph, decisions)
        self._per_channel: Array = np.array([x.n_parameters for x in extras], dtype=np.float64)
        self._other = graph.other_parameters

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        outputs = self._outputs.at(v)
        weights = self._factor @ (self._inputs.at(v) * outputs) + self._bias @ outputs
        return float(weights + self._per_channel @ self._channels.at(v) + self._other)


class BytesCost(CostModel):
    """Bytes of all tensors stored in float32: parameters and buffers, without a file header."""

    name = "bytes"

    def __init__(self, graph: LayerGraph, decisions: Sequence[Decision]) -> None:
        extras = graph.channel_parameters
        self._params = ParamsCost(graph, decisions)
        self._channels = _WidthMatrix([x.width for x in extras], graph, decisions)
        self._per_channel: Array = np.array([x.n_buffers for x in extras], dtype=np.float64)
        self._other = graph.other_buffer_bytes

    def __call__(self, values: Sequence[float] | Array) -> float:  # noqa: D102
        v = np.asarray(values, dtype=np.float64)
        buffers = self._per_channel @ self._channels.at(v)
        return float(BYTES_PER_FLOAT * (self._params(v) + buffers) + self._other)


COSTS: dict[str, Callable[[LayerGraph, Sequence[Decision]], CostModel]] = {
    "macs": MacsCost,
    "params": ParamsCost,
    "bytes": BytesCost,
}


def make_cost(name: str, graph: LayerGraph, decisions: Sequence[Decision]) -> CostModel:
    """Builds the cost model of that name.

    Raises:
        ValueError: If the name is unknown.
    """
    if name not in COSTS:
        raise ValueError(f"Unknown cost {name!r}; expected one of {sorted(COSTS)}.")
    return COSTS[name](graph, decisions)
