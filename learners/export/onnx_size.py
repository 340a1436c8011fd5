"""What the ONNX file of a network holds, to count the bytes of the files of smaller ones."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import nn

from amc_compress.learners.export.interface import Interface, on_cpu
from amc_compress.learners.export.onnx_file import float_model
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.networks.intake import take_in
from amc_env.costs.cost_model import with_weights
from amc_env.costs.onnx_bytes import OnnxBytesCost, OnnxContents
from amc_env.graph import LayerGraph
from amc_env.plan import Decision

_NORM = ("weight", "bias", "running_mean", "running_var")
_ENTRY_BYTES = 128
"""More than an entry of the file takes besides its numbers: name, type and shape."""


def onnx_bytes_cost(
    model: nn.Module,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    example_input: object,
    options: OnnxOptions | None = None,
) -> OnnxBytesCost:
    """Exports a network and returns the cost ``onnx_bytes`` of its plans.

    Args:
        model: The original network, float32.
        graph: Facts about it.
        decisions: All decisions in order.
        example_input: What it is called with, samples first.
        options: Of the files that will be written.

    Raises:
        ExportError: If the network cannot be exported.
    """
    contents = onnx_contents(model, graph, example_input, options)
    return OnnxBytesCost(graph, decisions, contents)


def onnx_contents(
    model: nn.Module,
    graph: LayerGraph,
    example_input: object,
    options: OnnxOptions | None = None,
) -> OnnxContents:
    """Returns what the ONNX file of a network holds; the file itself is not kept.

    Raises:
        ExportError: If the network cannot be exported.
    """
    from amc_compress.learners.export.onnx_finish import write

    options = options or OnnxOptions()
    network = take_in(model, "cpu").network
    interface = Interface(network, on_cpu(network, example_input), options.batch)
    exported = float_model(network, interface, options)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "original.onnx"
        write(exported, path, options)
        size = path.stat().st_size
    held = {
        name: value.const_value.numpy()
        for name, value in exported.graph.initializers.items()
        if value.const_value is not None
    }
    return _attributed(network, graph, size, held)


def _attributed(
    network: nn.Module, graph: LayerGraph, size: int, held: dict[str, np.ndarray]
) -> OnnxContents:
    """Tells which tensors of the file are whose: by their names, transposed ones by content."""
    floats = {name: array for name, array in held.items() if array.dtype == np.float32}
    full, state = graph.full(), network.state_dict()
    transposed = [array for array in floats.values() if array.ndim == 2]
    weights, unseen = set(), 0
    vectors: dict[str, int] = {}
    for layer in with_weights(graph):
        own = floats.get(f"{layer.name}.weight")
        original = state.get(f"{layer.name}.weight")
        width = layer.out_width.at(full)
        if own is None and original is not None and original.ndim == 2:
            turned = original.float().numpy().T
            own = next((array for array in transposed if np.array_equal(array, turned)), None)
        if own is not None and own.size == layer.weights(full):
            weights.add(layer.name)
        names = (f"{layer.name}.bias", f"{layer.name}.weight_bias")
        found = sum(n in floats and floats[n].size == width for n in names)
        if found:
            vectors[layer.name] = found
        elif layer.has_bias:  # equal to another tensor, whose entry it shares
            unseen += 4 * int(width) + _ENTRY_BYTES
    for norm in graph.channel_parameters:
        width = norm.width.at(full)
        own_names = (f"{norm.name}.{part}" for part in _NORM)
        found = sum(n in floats and floats[n].size == width for n in own_names)
        if found:
            vectors[norm.name] = found
    return OnnxContents(size, frozenset(weights), vectors, unseen)
