"""Tables of measured costs: milliseconds or millijoules of every layer at several widths and bits.

A table is a JSON file. Every source (``amc latency-table``, a phone, a board, a simulator)
writes the same form; ``docs/latency_tables.md`` describes it with an example.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from amc_env.errors import CompressionError
from amc_env.graph import LayerGraph, LayerSpec
from amc_env.validation.checks import check_least
from amc_env.validation.json_text import parse_json
from amc_env.validation.sentences import some

Array = npt.NDArray[np.float64]

TABLE_FORMAT = "amc-cost-table"
TABLE_VERSION = 1
QUANTITIES = ("latency", "energy")

_NAMED_PRECISIONS = {"fp32": (32, 32), "int8": (8, 8)}
_PRECISION = re.compile(r"w(\d{1,2})a(\d{1,2})")
_SPREAD = re.compile(r"\[\s+([^\[\]{}]*?)\s+\]")  # a list of numbers over several lines
_MAX_BITS = 32


class CostTableError(CompressionError, ValueError):
    """A cost table is damaged, incomplete, or was made for other layers."""


def precision_bits(name: str) -> tuple[int, int]:
    """Returns the bits of weights and activations that a precision's name stands for.

    Example:
        >>> precision_bits("int8"), precision_bits("w4a6")
        ((8, 8), (4, 6))

    Raises:
        CostTableError: If it is no such name.
    """
    if name in _NAMED_PRECISIONS:
        return _NAMED_PRECISIONS[name]
    match = _PRECISION.fullmatch(name)
    bits = tuple(int(part) for part in match.groups()) if match else (0, 0)
    if not all(1 <= number <= _MAX_BITS for number in bits):
        raise CostTableError(
            f"Expected a precision like 'fp32', 'int8' or 'w4a8' (bits of weights and "
            f"activations, 1 to {_MAX_BITS}), got {name!r}."
        )
    return bits[0], bits[1]


@dataclass(frozen=True)
class LayerTable:
    """Measured costs of one layer.

    Args:
        name: Qualified module name.
        kind: ``"conv"`` or ``"linear"``.
        in_widths: Measured lengths of the weight's axis 1 (input channels per convolution group),
            ascending.
        out_widths: Measured lengths of the weight's axis 0, ascending.
        values: Precision -> costs, shape ``(len(in_widths), len(out_widths))``; NaN where nothing
            was measured yet.
        kernel: Spatial kernel, empty for linear layers.
        stride: Spatial stride, empty for linear layers.
        depthwise: Whether every channel is a convolution group of its own.
        input_size: Spatial size of the input, empty for linear layers.
    """

    name: str
    kind: str
    in_widths: tuple[int, ...]
    out_widths: tuple[int, ...]
    values: Mapping[str, Array]
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    depthwise: bool = False
    input_size: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for precision, values in self.values.items():
            for value in np.asarray(values, dtype=np.float64).flat:
                if not math.isnan(value):  # not measured yet
                    _positive(self.name, precision, value)

    @property
    def shape(self) -> tuple[Any, ...]:
        """The layer's shape, which must match the network's layer."""
        return (self.kind, self.kernel, self.stride, self.depthwise, self.input_size)

    @property
    def missing(self) -> int:
        """Number of cells without a value."""
        return sum(int(np.isnan(values).sum()) for values in self.values.values())

    def to_document(self) -> dict[str, Any]:
        """Returns the layer as it stands in the file."""
        return {
            "name": self.name,
            "kind": self.kind,
            "kernel": list(self.kernel),
            "stride": list(self.stride),
            "depthwise": self.depthwise,
            "input_size": list(self.input_size),
            "in_widths": list(self.in_widths),
            "out_widths": list(self.out_widths),
            "values": {
                precision: [[None if math.isnan(x) else x for x in row] for row in values.tolist()]
                for precision, values in self.values.items()
            },
        }


def layer_shape(layer: LayerSpec) -> tuple[Any, ...]:
    """Returns the same facts about a network's layer as :attr:`LayerTable.shape`."""
    depthwise = layer.conv_groups > 1 and layer.in_width.fixed == 1 and not layer.in_width.terms
    return (layer.kind, layer.kernel, layer.stride, depthwise, layer.input_size)


def measured_layers(graph: LayerGraph) -> list[LayerSpec]:
    """Returns the layers that a table holds: all with weights that do work on an image.

    Products without weights (attention) are part of what the layer behind them costs, the states
    of a recurrent kernel of what its inputs cost.
    """
    return [
        layer
        for layer in graph.layers
        if layer.has_weights and layer.positions and layer.kind != "recurrent"
    ]


@dataclass(frozen=True)
class CostTable:
    """Measured costs of a network's layers.

    Args:
        quantity: ``"latency"`` or ``"energy"``; the name of the cost in budgets.
        unit: Of all values, e.g. ``"ms"``.
        runtime: What ran the layers, with its version.
        batch: Images per call; values are per call.
        machine: What it ran on, in words.
        layers: By name.
        constant: What a network costs besides its layers (starting a call).
        details: What else the maker wants to keep, ``form`` if it is to be filled in by hand;
            ignored by the cost model.
    """

    quantity: str
    unit: str
    runtime: str
    batch: int
    machine: str
    layers: Mapping[str, LayerTable]
    constant: float = 0.0
    details: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_least("a cost table", {"batch": self.batch}, 1)
        check_least("a cost table", {"constant": self.constant}, 0)

    @property
    def precisions(self) -> tuple[str, ...]:
        """All precisions that any layer was measured in."""
        return tuple(dict.fromkeys(p for layer in self.layers.values() for p in layer.values))

    @property
    def is_form(self) -> bool:
        """Whether it was written to be filled in by hand, not by measuring on this machine."""
        return bool(self.details.get("form"))

    def total(self, precision: str) -> float:
        """Returns the cost of the network at its largest widths in one precision."""
        layers = self.layers.values()
        return self.constant + sum(float(layer.values[precision][-1, -1]) for layer in layers)

    def to_document(self) -> dict[str, Any]:
        """Returns the table as a JSON document."""
        return {
            "format": TABLE_FORMAT,
            "version": TABLE_VERSION,
            "quantity": self.quantity,
            "unit": self.unit,
            "runtime": self.runtime,
            "batch": self.batch,
            "machine": self.machine,
            "constant": self.constant,
            "layers": [layer.to_document() for layer in self.layers.values()],
            "details": dict(self.details),
        }

    def to_json(self) -> str:
        """Returns the text of the file; lists of numbers stand on one line each."""
        text = json.dumps(self.to_document(), indent=1, allow_nan=False)
        return _SPREAD.sub(lambda match: "[" + " ".join(match[1].split()) + "]", text) + "\n"

    @classmethod
    def read(cls, path: str | Path) -> CostTable:
        """Reads a table.

        Raises:
            CostTableError: If the file is missing, cut short, no table, of another version, or
                holds values that no measurement gives.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            raise CostTableError(
                f"The cost table {path} cannot be read ({error}); make one with amc latency-table."
            ) from error
        return cls.from_json(text, name=str(path))

    @classmethod
    def from_json(cls, text: str, *, name: str = "The cost table") -> CostTable:
        """Reads a table from its text.

        Raises:
            CostTableError: As :meth:`read`.
        """
        try:
            document = parse_json(text)
        except ValueError as error:
            raise CostTableError(
                f"{name} is not JSON, or cut short ({error}); restore it, or measure it again with "
                f"amc latency-table."
            ) from error
        if not isinstance(document, dict) or document.get("format") != TABLE_FORMAT:
            raise CostTableError(
                f"{name} is no cost table: expected the key 'format' with {TABLE_FORMAT!r}."
            )
        if document.get("version") != TABLE_VERSION:
            raise CostTableError(
                f"{name} has version {document.get('version')}, this release reads version "
                f"{TABLE_VERSION}; measure it again, or use the release that wrote it."
            )
        try:
            return _table(document)
        except CostTableError as error:
            raise CostTableError(f"{name}: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise CostTableError(
                f"{name} is damaged: {type(error).__name__} {error}; the form is described in "
                f"docs/latency_tables.md."
            ) from error

    def check(self, graph: LayerGraph) -> None:
        """Checks that the table is complete and holds every layer of a network.

        Raises:
            CostTableError: Naming what is missing, and how to measure it.
        """
        wanted = measured_layers(graph)
        if missing := [layer.name for layer in wanted if layer.name not in self.layers]:
            raise CostTableError(
                f"The cost table was made for other layers: it lacks {some(missing)}; measure "
                f"this network with amc latency-table --model NAME --out FILE, or add rows for "
                f"them (docs/latency_tables.md)."
            )
        for layer in wanted:
            _check_layer(self.layers[layer.name], layer, graph)
            if missing_values := self.layers[layer.name].missing:
                remedy = (
                    "put a number in place of every null (docs/latency_tables.md)"
                    if self.is_form
                    else "repeat the command that made it, it resumes where it stopped"
                )
                raise CostTableError(
                    f"The cost table is not finished: {layer.name} lacks {missing_values} values; "
                    f"{remedy}."
                )


def _check_layer(table: LayerTable, layer: LayerSpec, graph: LayerGraph) -> None:
    if table.shape != layer_shape(layer):
        raise CostTableError(
            f"The cost table was made for another network: its {layer.name} is {table.shape} "
            f"(kind, kernel, stride, depthwise, input size), the network's {layer_shape(layer)}; "
            f"measure this network with amc latency-table."
        )
    full = graph.full()
    for axis, widest, needed in (
        ("inputs", table.in_widths[-1], layer.in_width.at(full)),
        ("outputs", table.out_widths[-1], layer.out_width.at(full)),
    ):
        if widest < needed:
            raise CostTableError(
                f"The cost table was made for a narrower network: {layer.name} has {needed:g} "
                f"{axis}, the table ends at {widest}; measure this network with amc latency-table."
            )


def _table(document: Mapping[str, Any]) -> CostTable:
    if document["quantity"] not in QUANTITIES:
        raise CostTableError(
            f"expected the quantity {' or '.join(QUANTITIES)}, got {document['quantity']!r}."
        )
    batch = document["batch"]
    if not isinstance(batch, int) or batch < 1:
        raise CostTableError(f"expected a batch of at least 1, got {batch!r}.")
    layers = [_layer(row) for row in document["layers"]]
    names = [layer.name for layer in layers]
    if not names or len(set(names)) < len(names):
        raise CostTableError("expected at least one layer, and every layer once.")
    constant = float(document.get("constant", 0.0))
    if not (math.isfinite(constant) and constant >= 0):
        raise CostTableError(f"expected a constant of at least 0, got {constant}.")
    return CostTable(
        quantity=document["quantity"],
        unit=str(document["unit"]),
        runtime=str(document["runtime"]),
        batch=batch,
        machine=str(document["machine"]),
        layers=dict(zip(names, layers, strict=True)),
        constant=constant,
        details=dict(document.get("details", {})),
    )


def _layer(row: Mapping[str, Any]) -> LayerTable:
    name = str(row["name"])
    inputs, outputs = (_widths(name, key, row[key]) for key in ("in_widths", "out_widths"))
    values = {}
    for precision, numbers in row["values"].items():
        precision_bits(precision)
        values[precision] = _values(name, precision, numbers, (len(inputs), len(outputs)))
    if not values:
        raise CostTableError(f"{name} has no values.")
    return LayerTable(
        name=name,
        kind=str(row["kind"]),
        in_widths=inputs,
        out_widths=outputs,
        values=values,
        kernel=tuple(row.get("kernel", ())),
        stride=tuple(row.get("stride", ())),
        depthwise=bool(row.get("depthwise", False)),
        input_size=tuple(row.get("input_size", ())),
    )


def _widths(name: str, key: str, numbers: Iterable[Any]) -> tuple[int, ...]:
    widths = tuple(int(number) for number in numbers)
    if not widths or widths[0] < 1 or list(widths) != sorted(set(widths)):
        raise CostTableError(f"expected ascending {key} of at least 1 in {name}, got {widths}.")
    return widths


def _values(name: str, precision: str, numbers: Any, shape: tuple[int, int]) -> Array:
    # ``None`` becomes NaN; a NaN in the file itself is a measurement that went wrong.
    rows = [[math.nan if x is None else _positive(name, precision, x) for x in r] for r in numbers]
    if len(rows) != shape[0] or any(len(row) != shape[1] for row in rows):
        raise CostTableError(
            f"expected {shape[0]} rows (in_widths) of {shape[1]} values (out_widths) in {name}, "
            f"{precision}, got {len(rows)} rows of {sorted({len(row) for row in rows})}."
        )
    return np.array(rows, dtype=np.float64)


def _positive(name: str, precision: str, value: Any) -> float:
    number = float(value)
    if not (math.isfinite(number) and number >= 0):
        raise CostTableError(
            f"expected values of at least 0 in {name}, {precision}, got {value}; measure that "
            f"layer again."
        )
    return number
