"""ONNX graph surgery: prepares a float export for 8-bit integers.

All functions change the :class:`onnx_ir.Model` they are given. Naming nodes, removing what nothing
reads and eliminating identities are passes of ``onnx_ir``; what is here no library has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes import Sequential
from onnx_ir.passes.common import IdentityEliminationPass, NameFixPass, RemoveUnusedNodesPass

Array = npt.NDArray[Any]

# ONNX Runtime's operators for layers with weights, after its optimisation (any domain).
INTEGER_LAYERS = frozenset(
    {
        "QLinearConv",
        "ConvInteger",
        "QGemm",
        "QLinearMatMul",
        "MatMulInteger",
        "MatMulIntegerToFloat",
    }
)
FLOAT_LAYERS = frozenset(
    {
        "Conv",
        "FusedConv",
        "ConvTranspose",
        "Gemm",
        "FusedGemm",
        "MatMul",
        "FusedMatMul",
        "MatMulNBits",
    }
)

RECURRENT_LAYERS = frozenset({"LSTM", "GRU", "RNN"})
"""Likewise, which have several weights and no integer kernels."""


def constant(value: ir.Value | None) -> Array | None:
    """Returns the numbers of a constant, ``None`` for what is computed."""
    known = None if value is None else value.const_value
    return None if known is None else known.numpy()


def add_constant(model: ir.Model, name: str, numbers: Array | ir.TensorProtocol) -> ir.Value:
    """Adds a constant, or gives the one of that name other numbers."""
    value = ir.val(name, const_value=ir.tensor(numbers, name=name))
    if (old := model.graph.initializers.get(name)) is not None:
        old.const_value, old.shape, old.type = value.const_value, value.shape, value.type
        return old
    model.graph.register_initializer(value)
    return value


def only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    """Returns the node that alone reads a value, if it is of that kind."""
    nodes = value.consumers()
    return nodes[0] if len(nodes) == 1 and nodes[0].op_type == kind else None


def maker(value: ir.Value | None, kind: str) -> ir.Node | None:
    """Returns the node that makes a value, if it is of that kind."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == kind else None


def values(model: ir.Model) -> Iterator[ir.Value]:
    """Yields everything that has a name: inputs, constants and results, of nested graphs too."""
    for graph in model.graphs():
        yield from (*graph.inputs, *graph.initializers.values())
        for node in graph:
            yield from node.outputs


def clean(model: ir.Model) -> None:
    """Gives nodes names, and removes what nothing reads and the exporter's notes.

    The notes are stack traces with file names, a fifth of a small file.
    """
    Sequential(RemoveUnusedNodesPass(), NameFixPass())(model)
    nodes = [node for graph in model.graphs() for node in graph]
    parts: list[Any] = [model, *model.functions.values(), *model.graphs(), *nodes, *values(model)]
    for part in parts:
        part.doc_string = None
        part.metadata_props.clear()
    for graph in model.graphs():
        for value in graph.initializers.values():
            value.shape = value.type = None  # would be written next to the constant, which has them


def weighted_nodes(model: ir.Model, weights: Mapping[str, Array]) -> dict[str, list[ir.Node]]:
    """Finds the nodes that compute each layer, and gives each layer a weight tensor of its own.

    The exporter names a constant after its parameter, but transposes some (under a new name) and
    shares equal ones.

    Args:
        model: The exported model.
        weights: Layer -> its weights as torch holds them, (out, in, ...).

    Returns:
        Layer -> its nodes; more than one where a layer is called repeatedly, none where it has
        become something else.
    """
    takers: dict[str, list[ir.Node]] = {}
    for node in model.graph:
        if node.op_type in FLOAT_LAYERS and len(node.inputs) > 1 and node.inputs[1] is not None:
            takers.setdefault(node.inputs[1].name or "", []).append(node)
    named = {f"{name}.weight" for name in weights}
    others = [node for name, nodes in takers.items() if name not in named for node in nodes]
    found: dict[str, list[ir.Node]] = {}
    owners: dict[ir.Value, str] = {}
    for name, weight in weights.items():
        nodes = takers.get(f"{name}.weight", others)
        found[name] = [node for node in nodes if _same(constant(node.inputs[1]), weight)]
        for node in found[name]:
            shared, numbers = node.inputs[1], constant(node.inputs[1])
            if shared is None or numbers is None or owners.setdefault(shared, name) == name:
                continue
            node.replace_input_with(1, add_constant(model, f"{name}.own_weight", numbers))
    return found


def _same(stored: Array | None, weight: Array) -> bool:
    if stored is None:
        return False
    if stored.shape == weight.shape and np.array_equal(stored, weight):
        return True
    return weight.ndim == 2 and np.array_equal(stored, weight.T)


def output_axis(node: ir.Node) -> int:
    """Returns the axis of a node's weight tensor along which the outputs are."""
    if node.op_type == "Gemm":
        return 0 if node.attributes.get_int("transB", 0) else 1
    return 1 if node.op_type == "MatMul" else 0


def simplify(model: ir.Model) -> None:
    """Rewrites what the exporter writes in ways for which there are no 8-bit kernels."""
    pool_globally(model)
    merge_slices(model)
    clean(model)


def pool_globally(model: ir.Model) -> None:
    """Turns means over both image axes into global pooling, which has an 8-bit kernel."""
    for node in model.graph:
        if node.op_type != "ReduceMean" or len(node.inputs) < 2:
            continue
        images, axes = node.inputs[0], constant(node.inputs[1])
        if images is None or images.shape is None or len(images.shape) != 4 or axes is None:
            continue
        if sorted(int(axis) % 4 for axis in axes) == [2, 3]:
            new = [ir.node("GlobalAveragePool", [images])]
            if not node.attributes.get_int("keepdims", 1):
                new.append(ir.node("Flatten", new[0].outputs, {"axis": 1}))
            replace_node(node, new)


def merge_slices(model: ir.Model) -> None:
    """Turns slices of one axis after another into one; the exporter cuts axis by axis."""
    for node in model.graph:
        first = maker(node.inputs[0], "Slice") if node.op_type == "Slice" else None
        if first is None or len(first.outputs[0].uses()) > 1:
            continue
        # Starts, ends, axes and steps, all known, and no axis twice.
        parts = [[constant(value) for value in n.inputs[1:]] for n in (first, node)]
        known = [[part for part in four if part is not None] for four in parts]
        if [len(four) for four in known] != [4, 4] or np.intersect1d(known[0][2], known[1][2]).size:
            continue
        merged = [
            add_constant(model, f"{node.outputs[0].name}_merged_{i}", np.concatenate(both))
            for i, both in enumerate(zip(*known, strict=True))
        ]
        replace_node(node, [ir.node("Slice", [first.inputs[0], *merged])])


def pad_integers(model: ir.Model) -> None:
    """Moves zero padding between a quantizer and its inverse onto the integers themselves.

    ONNX Runtime does so for slices and pooling, but leaves padding in float.
    """
    for node in model.graph:
        if node.op_type != "Pad" or not _pads_zeros(node):
            continue
        before = maker(node.inputs[0], "DequantizeLinear")
        after = only_reader(node.outputs[0], "QuantizeLinear")
        if before is None or after is None or len(before.inputs) < 3:
            continue
        if before.inputs[1:] == after.inputs[1:]:
            inputs = [before.inputs[0], node.inputs[1], before.inputs[2]]
            replace_node(after, [ir.node("Pad", inputs)])


def align_images(model: ir.Model) -> None:
    """Adds black channels to 8-bit images until their number is a multiple of 4.

    ONNX Runtime's fast integer convolutions need that; the first layer of a network of colour
    images would take twice as long, a seventh of ResNet-20. The weights get zeros for them.
    """
    quantizers = [n for n in model.graph.inputs[0].consumers() if n.op_type == "QuantizeLinear"]
    if len(quantizers) != 1:
        return
    decoded = only_reader(quantizers[0].outputs[0], "DequantizeLinear")
    layer = None if decoded is None else only_reader(decoded.outputs[0], "Conv")
    decoder = None if layer is None else maker(layer.inputs[1], "DequantizeLinear")
    stored = None if decoder is None else decoder.inputs[0]
    weight = constant(stored)
    if decoded is None or layer is None or decoder is None or stored is None or weight is None:
        return
    if weight.ndim != 4 or weight.shape[1] % 4 == 0 or layer.attributes.get_int("group", 1) != 1:
        return
    missing = -weight.shape[1] % 4
    add_constant(model, stored.name or "", np.pad(weight, [(0, 0), (0, missing), (0, 0), (0, 0)]))
    counts = add_constant(model, "black_channels", np.array([0, 0, 0, 0, 0, missing, 0, 0]))
    wider = ir.node("Pad", [quantizers[0].outputs[0], counts, quantizers[0].inputs[2]])
    decoded.prepend(wider)
    decoded.replace_input_with(0, wider.outputs[0])
    # The shapes noted for these tensors are not true any more; ONNX Runtime infers them anew.
    for stale in (decoded.outputs[0], decoder.outputs[0]):
        stale.shape = None


def keep_float(model: ir.Model) -> None:
    """Protects layers with float weights from being quantized when the file is loaded.

    ONNX Runtime rounds the float weights of layers whose input comes from 8 bits and whose output
    goes there to 8 bits of its own choice, with one scale for all channels. It does so only if
    nothing but an activation function lies in between; a maximum that changes nothing stops it,
    and one with zero computes the same as the activation it replaces.
    """
    for node in model.graph:
        if node.op_type not in FLOAT_LAYERS or maker(node.inputs[1], "DequantizeLinear"):
            continue
        if not maker(node.inputs[0], "DequantizeLinear"):
            continue
        result = node.outputs[0]
        relu = only_reader(result, "Relu")
        least = np.finfo(np.float32).min if relu is None else np.float32(0)
        bound = add_constant(model, f"{node.name}_bound", np.asarray(least))
        uses = result.uses()
        floor = ir.node("Max", [result, bound])
        if relu is not None:
            replace_node(relu, [floor])
        elif uses:
            node.append(floor)
            for reader, index in uses:
                reader.replace_input_with(index, floor.outputs[0])


def remove_identities(model: ir.Model) -> None:
    """Lets the readers of identities read what these read."""
    IdentityEliminationPass()(model)


def replace_node(node: ir.Node, new: Sequence[ir.Node]) -> None:
    """Puts nodes in the place of another one, whose single output the last of them makes."""
    graph = node.graph
    assert graph is not None
    ir.convenience.replace_nodes_and_values(graph, node, [node], new, node.outputs, new[-1].outputs)


def _pads_zeros(node: ir.Node) -> bool:
    if node.attributes.get_string("mode", "constant") != "constant" or len(node.inputs) > 3:
        return False  # the fourth input has the axes
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return True
    value = constant(node.inputs[2])
    return value is not None and not value.any()
