"""Weights that ONNX files hold in integers, and that are multiplied in float: tables, gates.

ONNX Runtime looks up in 8-bit tables, but it multiplies in float32 in recurrent layers: their
integers become numbers again whenever the file runs, which makes it small and not faster.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from torch import nn

from amc_compress.learners.export.integers.onnx_integers import (
    fits_int8,
    has_integers,
    weight_integers,
)
from amc_compress.learners.export.onnx_graph import Array, add_constant, constant
from amc_compress.learners.layers.quantized import QuantizedWeight

_GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2)}
"""Operator -> where torch has each of its blocks of rows."""

_RECURRENT_WEIGHTS = (1, 2)  # of the inputs: those of the inputs, those of the states


def is_looked_up(weight: QuantizedWeight) -> bool:
    """Whether a weight is a table."""
    return isinstance(weight.layer, nn.Embedding)


def store_tables(model: ir.Model, weights: Mapping[str, QuantizedWeight]) -> None:
    """Replaces tables that are looked up in by their integers; the rows read are multiplied.

    Args:
        model: Changed in place.
        weights: Quantized tables by layer.
    """
    for name, (integers, scales) in _small(weights).items():
        store_table(model, name, weights[name].used().detach().cpu().numpy(), integers, scales)


def store_table(model: ir.Model, name: str, used: Array, integers: Array, scales: Array) -> bool:
    """Replaces a table that is looked up in by its integers.

    Args:
        model: Changed in place.
        name: Of the layer.
        used: The table as it is in the model, an entry a row.
        integers: -128 to 127, of the same shape.
        scales: One for each column.

    Returns:
        Whether the model has such a table.
    """
    found = False
    for node in [x for x in model.graph if x.op_type == "Gather"]:
        along_rows = node.attributes.get_int("axis", 0) == 0
        if not (along_rows and _equal(constant(node.inputs[0]), used)):
            continue
        table = add_constant(model, f"{name}.integers", integers.astype(np.int8))
        steps = add_constant(model, f"{name}.scales", scales)
        read = ir.node("Gather", [table, node.inputs[1]], {"axis": 0})
        decode = ir.node("DequantizeLinear", [read.outputs[0], steps], {"axis": -1})
        _replace(node, [read, decode])
        found = True
    return found


def store_gates(model: ir.Model, weights: Mapping[str, QuantizedWeight]) -> None:
    """Replaces the weights of recurrent operators by integers, all directions of one together.

    Args:
        model: Changed in place.
        weights: Quantized weights of recurrent layers.
    """
    _fold(model)
    small = _small(weights)
    used = {name: weights[name].used().detach().cpu().numpy() for name in small}
    for node in list(model.graph):
        for index in _RECURRENT_WEIGHTS if node.op_type in _GATES else ():
            stored = node.inputs[index]
            numbers = constant(stored)
            order = _GATES[node.op_type]
            owners = [] if numbers is None else list(_owners(numbers, used, order))
            if stored is None or numbers is None or len(owners) != len(numbers):
                continue
            parts = [tuple(_by_gates(x, order) for x in small[name]) for name in owners]
            integers, scales = (np.concatenate(both) for both in zip(*parts, strict=True))
            label = f"{owners[0]}.{index}"
            constants = [
                add_constant(model, f"{label}.integers", integers.astype(np.int8)),
                add_constant(model, f"{label}.scales", scales),
            ]
            shape = add_constant(model, f"{label}.shape", np.array(numbers.shape, np.int64))
            decode = ir.node("DequantizeLinear", constants, {"axis": 0})
            shaped = ir.node("Reshape", [decode.outputs[0], shape])
            node.prepend([decode, shaped])
            node.replace_input_with(index, shaped.outputs[0])


def _fold(model: ir.Model) -> None:
    """Makes the weights of recurrent operators constants; the exporter reorders large ones anew."""
    proto = None
    for node in list(model.graph):
        for index in _RECURRENT_WEIGHTS if node.op_type in _GATES else ():
            value = node.inputs[index]
            if value is None or constant(value) is not None:
                continue
            proto = proto or ir.to_proto(model)
            made = _constant_part(proto, str(value.name))
            if made is not None:
                node.replace_input_with(index, add_constant(model, f"{value.name}_folded", made))


def _constant_part(proto: onnx.ModelProto, name: str) -> Array | None:
    """Returns the numbers of a tensor that depends on no input, else ``None``."""
    makers = {output: node for node in proto.graph.node for output in node.output}
    needed, nodes = [name], []
    while needed:
        if (node := makers.get(needed.pop())) is not None and node not in nodes:
            nodes.append(node)
            needed += node.input
    read = {x for node in nodes for x in node.input if x}
    stored = [x for x in proto.graph.initializer if x.name in read]
    if read - {x.name for x in stored} - makers.keys():
        return None
    nodes.sort(key=list(proto.graph.node).index)
    graph = onnx.helper.make_graph(nodes, "part", [], [onnx.ValueInfoProto(name=name)], stored)
    part = onnx.helper.make_model(graph, opset_imports=proto.opset_import)
    found: Any = ReferenceEvaluator(part).run(None, {})
    numbers: Array = found[0]
    return numbers


def _small(weights: Mapping[str, QuantizedWeight]) -> dict[str, tuple[Array, Array]]:
    """Returns integers and scales of those that are 8-bit integers times one scale per output."""
    found = {
        name: weight_integers(weight)
        for name, weight in weights.items()
        if has_integers(weight.quantizer)
    }
    return {name: both for name, both in found.items() if fits_int8(both[0])}


def _owners(numbers: Array, used: Mapping[str, Array], order: tuple[int, ...]) -> Iterator[str]:
    """Yields whose weights each direction of a recurrent operator has; less where one has none."""
    for direction in numbers:
        for name, weight in used.items():
            if len(weight) % len(order) == 0 and _equal(direction, _by_gates(weight, order)):
                yield name
                break


def _by_gates(rows: Array, order: tuple[int, ...]) -> Array:
    blocks = np.split(rows, len(order))
    return np.concatenate([blocks[i] for i in order])


def _equal(stored: Array | None, weight: Array) -> bool:
    return stored is not None and stored.shape == weight.shape and np.array_equal(stored, weight)


def _replace(node: ir.Node, new: list[ir.Node]) -> None:
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)
