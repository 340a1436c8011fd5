"""ONNX graph surgery: prepares a float export for 8-bit integers.

All functions change the model they are given.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

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


def initializers(model: Any) -> dict[str, np.ndarray]:
    """Returns the constants of a model by name."""
    from onnx import numpy_helper

    return {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}


def set_initializer(model: Any, name: str, tensor: Any) -> None:
    """Adds a constant, or replaces the one of that name.

    Args:
        model: The model.
        name: The constant's name.
        tensor: An array, or a ``TensorProto`` for types that NumPy does not know.
    """
    from onnx import numpy_helper

    if isinstance(tensor, np.ndarray):
        tensor = numpy_helper.from_array(tensor)
    tensor.name = name
    for old in model.graph.initializer:
        if old.name == name:
            old.CopyFrom(tensor)
            return
    model.graph.initializer.append(tensor)


def insert_before(model: Any, node: Any, new: Any) -> None:
    """Puts ``new`` in front of ``node``."""
    model.graph.node.insert(_position(model, node), new)


def readers(model: Any, tensor: str) -> list[Any]:
    """Returns the nodes that read a tensor."""
    return [node for node in model.graph.node if tensor in node.input]


def producers(model: Any) -> dict[str, Any]:
    """Returns tensor -> the node that makes it."""
    return {output: node for node in model.graph.node for output in node.output}


def name_nodes(model: Any) -> None:
    """Gives every node a name of its own."""
    seen: set[str] = set()
    for index, node in enumerate(model.graph.node):
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{index}"
        seen.add(node.name)


def weighted_nodes(model: Any, weights: Mapping[str, np.ndarray]) -> dict[str, list[Any]]:
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
    constants = initializers(model)
    takers = [n for n in model.graph.node if n.op_type in FLOAT_LAYERS and len(n.input) > 1]
    found: dict[str, list[Any]] = {name: [] for name in weights}
    owners: dict[str, str] = {}
    for name, weight in weights.items():
        own = [n for n in takers if n.input[1] == f"{name}.weight"]
        same = own or [
            n
            for n in takers
            if n.input[1] not in {f"{other}.weight" for other in weights}
            and n.input[1] in constants
            and _same(constants[n.input[1]], weight)
        ]
        found[name] = [n for n in same if _same(constants.get(n.input[1]), weight)]
        for node in found[name]:
            if owners.setdefault(node.input[1], name) != name:
                set_initializer(model, f"{name}.own_weight", constants[node.input[1]])
                node.input[1] = f"{name}.own_weight"
    return found


def _same(stored: np.ndarray | None, weight: np.ndarray) -> bool:
    if stored is None:
        return False
    if stored.shape == weight.shape and np.array_equal(stored, weight):
        return True
    return weight.ndim == 2 and np.array_equal(stored, weight.T)


def output_axis(node: Any, weight: np.ndarray) -> int:
    """Returns the axis of a node's weight tensor along which the outputs are."""
    if node.op_type == "Gemm":
        flags = {a.name: a.i for a in node.attribute}
        return 0 if flags.get("transB") else 1
    return 1 if node.op_type == "MatMul" else 0


def simplify(model: Any) -> None:
    """Rewrites what the exporter writes in ways for which there are no 8-bit kernels."""
    name_nodes(model)
    forget_origins(model)
    pool_globally(model)
    merge_slices(model)


def forget_origins(model: Any) -> None:
    """Removes the exporter's notes: stack traces with file names, a fifth of a small file."""
    parts = [model, *model.functions]
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        parts += [graph, *graph.node, *graph.value_info, *graph.input, *graph.output]
        parts += graph.initializer
        attributes = [attribute for node in graph.node for attribute in node.attribute]
        graphs += [a.g for a in attributes if a.HasField("g")]
        graphs += [g for a in attributes for g in a.graphs]
    for part in parts:
        part.doc_string = ""
        del part.metadata_props[:]


def pool_globally(model: Any) -> int:
    """Turns means over both image axes into global pooling, which has an 8-bit kernel.

    Returns:
        How many there were.
    """
    from onnx import helper

    constants = initializers(model)
    ranks = {
        v.name: len(v.type.tensor_type.shape.dim)
        for v in (*model.graph.value_info, *model.graph.input)
    }
    count = 0
    for node in list(model.graph.node):
        if node.op_type != "ReduceMean" or ranks.get(node.input[0]) != 4 or len(node.input) < 2:
            continue
        axes = constants.get(node.input[1])
        if axes is None or sorted(int(a) % 4 for a in axes) != [2, 3]:
            continue
        keeps = {a.name: a.i for a in node.attribute}.get("keepdims", 1)
        mean, pooled = node.output[0], node.output[0] if keeps else f"{node.output[0]}_4d"
        insert_before(
            model, node, helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], node.name)
        )
        if not keeps:
            flatten = helper.make_node("Flatten", [pooled], [mean], f"{node.name}_2d", axis=1)
            insert_before(model, node, flatten)
        model.graph.node.remove(node)
        count += 1
    remove_unused(model)
    return count


def merge_slices(model: Any) -> int:
    """Turns slices of one axis after another into one; the exporter cuts axis by axis.

    Returns:
        How many have become superfluous.
    """
    from onnx import helper

    constants, made, count = initializers(model), producers(model), 0
    for node in list(model.graph.node):
        first = made.get(node.input[0]) if node.op_type == "Slice" else None
        if first is None or first.op_type != "Slice" or len(readers(model, node.input[0])) > 1:
            continue
        parts = [
            [constants[name] for name in n.input[1:] if name in constants] for n in (first, node)
        ]
        # Starts, ends, axes and steps, all known, and no axis twice.
        if [len(p) for p in parts] != [4, 4] or np.intersect1d(parts[0][2], parts[1][2]).size:
            continue
        names = [f"{node.name}_merged_{i}" for i in range(4)]
        for name, one, two in zip(names, *parts, strict=True):
            set_initializer(model, name, np.concatenate([one, two]))
        merged = helper.make_node("Slice", [first.input[0], *names], node.output, node.name)
        insert_before(model, node, merged)
        model.graph.node.remove(node)
        made[merged.output[0]] = merged
        constants.update(initializers(model))
        count += 1
    remove_unused(model)
    return count


def pad_integers(model: Any) -> int:
    """Moves zero padding between a quantizer and its inverse onto the integers themselves.

    ONNX Runtime does so for slices and pooling, but leaves padding in float.

    Returns:
        How many there were.
    """
    from onnx import helper

    made = producers(model)
    count = 0
    for node in list(model.graph.node):
        before, after = (
            made.get(node.input[0] if node.input else ""),
            readers(model, *node.output[:1]),
        )
        if node.op_type != "Pad" or before is None or before.op_type != "DequantizeLinear":
            continue
        if len(after) != 1 or after[0].op_type != "QuantizeLinear" or not _pads_zeros(model, node):
            continue
        if list(before.input[1:]) != list(after[0].input[1:]) or len(before.input) < 3:
            continue
        inputs = [before.input[0], node.input[1], before.input[2]]
        padded = helper.make_node("Pad", inputs, [after[0].output[0]], f"{node.name}_8bit")
        insert_before(model, node, padded)
        model.graph.node.remove(node)
        model.graph.node.remove(after[0])
        count += 1
    remove_unused(model)
    return count


def align_images(model: Any) -> bool:
    """Adds black channels to 8-bit images until their number is a multiple of 4.

    ONNX Runtime's fast integer convolutions need that; the first layer of a network of colour
    images would take twice as long, a seventh of ResNet-20. The weights get zeros for them.

    Returns:
        Whether the first layer was such a convolution.
    """
    from onnx import helper

    constants, made = initializers(model), producers(model)
    quantizers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    first = [q for q in quantizers if q.input[0] == model.graph.input[0].name]
    if len(first) != 1 or len(readers(model, first[0].output[0])) != 1:
        return False
    decoded = readers(model, first[0].output[0])[0]
    after = readers(model, decoded.output[0])
    if decoded.op_type != "DequantizeLinear" or len(after) != 1 or after[0].op_type != "Conv":
        return False
    stored = getattr(made.get(after[0].input[1]), "input", [""])[0]
    groups = {a.name: a.i for a in after[0].attribute}.get("group", 1)
    weight = constants.get(stored)
    if weight is None or groups != 1 or weight.ndim != 4 or weight.shape[1] % 4 == 0:
        return False
    missing = -weight.shape[1] % 4
    set_initializer(model, stored, np.pad(weight, [(0, 0), (0, missing), (0, 0), (0, 0)]))
    set_initializer(model, "black_channels", np.array([0, 0, 0, 0, 0, missing, 0, 0]))
    inputs = [first[0].output[0], "black_channels", first[0].input[2]]
    wider = helper.make_node("Pad", inputs, [f"{first[0].output[0]}_aligned"], "align_images")
    insert_before(model, decoded, wider)
    decoded.input[0] = wider.output[0]
    # The shapes noted for these tensors are not true any more; ONNX Runtime infers them anew.
    stale = {wider.output[0], decoded.output[0], after[0].input[1]}
    kept = [v for v in model.graph.value_info if v.name not in stale]
    del model.graph.value_info[:]
    model.graph.value_info.extend(kept)
    return True


def keep_float(model: Any) -> int:
    """Protects layers with float weights from being quantized when the file is loaded.

    ONNX Runtime rounds the float weights of layers whose input comes from 8 bits and whose output
    goes there to 8 bits of its own choice, with one scale for all channels. It does so only if
    nothing but an activation function lies in between; a maximum that changes nothing stops it,
    and one with zero computes the same as the activation it replaces.

    Returns:
        How many layers there were.
    """
    from onnx import helper

    made, count = producers(model), 0
    zero, lowest = np.float32(0), np.finfo(np.float32).min
    for node in [n for n in model.graph.node if n.op_type in FLOAT_LAYERS]:
        weight = made.get(node.input[1])
        integer = weight is not None and weight.op_type == "DequantizeLinear"
        source = made.get(node.input[0])
        if integer or source is None or source.op_type != "DequantizeLinear":
            continue
        result, after = node.output[0], readers(model, node.output[0])
        relu = after[0] if len(after) == 1 and after[0].op_type == "Relu" else None
        bound = f"{node.name}_bound"
        set_initializer(model, bound, np.asarray(lowest if relu is None else zero))
        if relu is not None:
            floor = helper.make_node("Max", [result, bound], [relu.output[0]], f"{node.name}_max")
            insert_before(model, relu, floor)
            model.graph.node.remove(relu)
        elif after:
            kept = f"{result}_kept"
            floor = helper.make_node("Max", [kept, bound], [result], f"{node.name}_max")
            insert_before(model, after[0], floor)
            node.output[0] = kept
        count += 1
    return count


def remove_copies(model: Any, ending: str) -> None:
    """Removes the identities whose names end so: their readers read what they read."""
    for node in [n for n in model.graph.node if n.name.endswith(ending)]:
        for reader in readers(model, node.output[0]):
            for index, name in enumerate(reader.input):
                if name == node.output[0]:
                    reader.input[index] = node.input[0]
        model.graph.node.remove(node)


def _pads_zeros(model: Any, node: Any) -> bool:
    if any(a.name == "mode" and a.s != b"constant" for a in node.attribute):
        return False
    if len(node.input) > 3:  # axes
        return False
    if len(node.input) < 3 or not node.input[2]:
        return True
    value = initializers(model).get(node.input[2])
    return value is not None and not value.any()


def remove_unused(model: Any) -> None:
    """Removes the nodes and constants that nothing reads."""
    results = {output.name for output in model.graph.output}
    while True:
        read = results | {name for node in model.graph.node for name in node.input}
        idle = [n for n in model.graph.node if not read & set(n.output)]
        if not idle:
            break
        for node in idle:
            model.graph.node.remove(node)
    _keep(model.graph.initializer, read)


def _keep(tensors: Any, names: Iterable[str]) -> None:
    kept = [t for t in tensors if t.name in set(names)]
    del tensors[:]
    tensors.extend(kept)


def _position(model: Any, node: Any) -> int:
    for index, other in enumerate(model.graph.node):
        if other is node or other == node:
            return index
    raise ValueError(f"{node.name} is not in this graph.")
