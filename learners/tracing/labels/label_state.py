"""State of label propagation: ids of tensors, and executed operations."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from amc_compress.learners.tracing.labels.labels import LabelTable, compact

# Parameters with more numbers than this are never labelled one by one (embedding tables).
_MAX_LABELLED = 1 << 20


@dataclass
class Call:
    """One matrix product or convolution, as it was executed.

    Args:
        weight: The parameter, None for a product of activations or a computed weight.
        module: Innermost module that was running.
        shape: ``(batch, rows, inner, columns)`` of an activation product; else the weight's shape.
        kernel: Spatial kernel.
        stride: Spatial stride.
        groups: Groups of the convolution.
        positions: How often the weight was applied, over the whole batch.
        bias: The bias, if it is a parameter.
        input_size: Spatial size of the input.
        factors: Labels along ``shape`` for an activation product, None where fixed.
        operation: Of what no rule expresses: its name; ``shape`` is its multiply-adds then.
        case: Which run it belongs to; the work of run 0 is what costs count.
        training: Whether that run was in training mode.
        is_transposed: Whether the outputs lie along axis 1 of the weight, the inputs along axis 0.
    """

    weight: Tensor | None
    module: str
    shape: tuple[int, ...]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    groups: int = 1
    positions: int = 1
    bias: Tensor | None = None
    input_size: tuple[int, ...] = ()
    factors: tuple[Tensor | None, ...] = ()
    operation: str = ""
    case: int = 0
    training: bool = False
    is_transposed: bool = False

    @property
    def macs(self) -> int:
        """Multiply-adds over the whole batch, with nothing cut."""
        return math.prod(self.shape) * (1 if self.factors or self.operation else self.positions)


class LabelState(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Runs a network for real and remembers the labels of its tensors.

    Args:
        table: Where ids are made and tied.
        parameters: ``id(tensor) -> name`` of every parameter and buffer.
    """

    def __init__(self, table: LabelTable, parameters: dict[int, str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.table = table
        self.parameters = parameters
        self.axis_labels: dict[int, tuple[Tensor, Tensor]] = {}  # weights: ids of axis 0, axis 1
        self.transposed: set[int] = set()  # weights whose outputs lie along axis 1
        # Weights that are looked up in, their outputs along axis 1 -> the calls made before.
        self.tables: dict[int, int] = {}
        self.upright: set[int] = set()  # weights of other convolutions
        self.parameter_labels: dict[int, Tensor] = {}  # other parameters: an id per coordinate
        self.norm_channels: dict[str, Tensor] = {}  # module that normalises -> ids of its channels
        self.norm_shapes: dict[str, Tensor] = {}  # module with a statistic -> ids that it runs over
        self.averaged: list[Tensor] = []  # ids over which statistics are taken, those that stay
        self.many: list[Tensor] = []  # ids of which more than one must stay
        self.classes = torch.zeros(0, dtype=torch.int64)  # of ids, as an earlier run ended
        self.computed: frozenset[str] = frozenset()  # weights that enter layers computed from
        self.computed_found: set[str] = set()  # those that this run has met
        self.computed_layers: dict[str, None] = {}  # those that a layer has used, in order
        self.calls: list[Call] = []
        self.touched: set[int] = set()  # parameters and buffers that entered any operation
        self.touched_by_example: set[int] = set()  # those of the first run
        self.modules: list[str] = [""]  # stack of running modules
        self.movers: set[str] = set()  # modules whose own code moves labelled data
        self.observed: list[set[str]] = []  # kinds of operations, for the caller that pushed a set
        self.blind: dict[str, str] = {}  # modules with code that never ran -> the reason to freeze
        self.statistics: dict[int, list[Tensor]] = {}  # what is made of some -> ids of their source
        self._labels: dict[int, Tensor | None] = {}
        # What is computed from parameters alone -> the weight among them, if there is one.
        self._origins: dict[int, Tensor | None] = {}
        # Computed weights have two ids per number, one of its row and one of its column.
        self._sides: tuple[dict[int, Tensor | None], dict[int, Tensor | None]] = ({}, {})
        self._side: int | None = None  # which of them the rules see
        self._hidden: frozenset[int] = frozenset()  # what has no ids on that side
        self._transposed: dict[int, Tensor] = {}
        self._alive: list[object] = []  # ids of Python objects are only unique while they live

    def label(self, tensor: Tensor) -> Tensor | None:
        """Returns the ids of a tensor's coordinates, None where all are fixed."""
        key = id(tensor)
        if self._side is not None:
            if key in self._hidden:
                return None
            if key in self._sides[self._side]:
                return self._sides[self._side][key]
        if key in self._labels:
            return self._labels[key]
        if key in self.parameters and tensor.dim() and tensor.numel() <= _MAX_LABELLED:
            if key not in self.parameter_labels:
                ids = self.table.fresh(tensor.numel()).view(tensor.shape)
                self.parameter_labels[key] = ids
            return self.parameter_labels[key]
        return None

    def set_label(self, tensor: Any, labels: Tensor | None) -> None:
        """Sets the ids of a result."""
        if isinstance(tensor, Tensor):
            self._alive.append(tensor)
            if labels is not None and labels.shape != tensor.shape:
                raise ValueError(f"labels {tuple(labels.shape)} for {tuple(tensor.shape)}")
            store = self._labels if self._side is None else self._sides[self._side]
            store[id(tensor)] = labels

    def _settled(self, labels: Tensor) -> Tensor:
        """Returns ids that differ only where an earlier run has not tied them in the end.

        Heads are tied by the product that follows their norm, tokens by the layer that reads them.
        """
        ids = compact(labels)
        if not len(self.classes):
            return ids
        known = ids.clamp(max=len(self.classes) - 1)
        return torch.where(ids < len(self.classes), self.classes[known], ids)

    def forget(self) -> None:
        """Forgets the tensors of a run; ids that are tied or frozen stay so."""
        stores = (self._labels, self._transposed, self._origins, *self._sides, self.statistics)
        for store in (*stores, self._alive):
            store.clear()

    def freeze_if_blind(self, tensors: Iterable[Tensor], *modules: str) -> None:
        """Freezes data that passes through a module in which some code never ran."""
        reason = next((self.blind[name] for name in modules if name in self.blind), None)
        if reason is not None:
            for tensor in tensors:
                if id(tensor) not in self.parameters and id(tensor) not in self._transposed:
                    self.table.freeze(self.label(tensor), reason)

    def _freeze_all(self, tensors: Sequence[Tensor], reason: str) -> None:
        for tensor in tensors:
            if id(tensor) in self._transposed:
                tensor = self._transposed[id(tensor)]
                self._freeze_weight(tensor, reason)
            self.table.freeze(self.label(tensor), reason)

    def _freeze_weight(self, weight: Tensor, reason: str) -> None:
        if weight.dim() >= 2:
            for ids in self._axes(weight):
                self.table.freeze(ids, reason)

    def _axes(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        key = id(weight)
        if key not in self.axis_labels:
            rows, columns = weight.shape[:2]
            self.axis_labels[key] = (self.table.fresh(rows), self.table.fresh(columns))
        return self.axis_labels[key]

    def output_labels(self, weight: Tensor) -> list[Tensor]:
        """Returns the ids of a weight's outputs, of both axes if it is a table that a layer uses.

        Nothing if it is no layer's weight.
        """
        axes = self.axis_labels.get(id(weight))
        if axes is None:
            return []
        is_upside_down = id(weight) in self.transposed
        return [axes[is_upside_down], *(axes[1:] if id(weight) in self.tables else ())]

    def is_parameter(self, tensor: Tensor | None) -> bool:
        """Whether a tensor is a parameter of the network itself, not computed from one."""
        return isinstance(tensor, nn.Parameter) and id(tensor) in self.parameters
