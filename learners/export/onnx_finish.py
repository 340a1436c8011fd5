"""Writes deployed ONNX files: their input, batch axis and metadata."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from amc_compress.learners.export.onnx_graph import add_constant, clean, values
from amc_compress.learners.export.onnx_options import BATCH, OnnxOptions
from amc_compress.learners.networks.normalisation import Normalisation


def write(model: ir.Model, path: Path, options: OnnxOptions) -> None:
    """Writes a model with the outside that is wanted; no paths and source lines of its making.

    Args:
        model: With one input of float32 images; changed in place.
        path: The file, written as it goes.
        options: What it is to look like.
    """
    clean(model)
    _set_batch(model, options.batch)
    _rename_input(model, options.input_name)
    how = "float32 images: (pixel / scale - mean) / std"
    if options.preprocessing is not None:
        _prepend(model, options.preprocessing)
        how = "uint8 pixels"
    entries = {"input": how, **options.metadata}
    model.metadata_props.update({key: entries[key] for key in sorted(entries)})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _set_batch(model: ir.Model, batch: int | None) -> None:
    """Names the free axis of the input, or fixes it, everywhere it occurs."""
    shape = model.graph.inputs[0].shape
    symbol = None if shape is None else shape[0]
    if not isinstance(symbol, ir.SymbolicDim) or symbol.value is None:
        return
    word = re.compile(rf"\b{re.escape(symbol.value)}\b")

    def settled(dim: int | ir.SymbolicDim) -> int | str | None:
        text = "" if isinstance(dim, int) else dim.value or ""
        if not word.search(text):
            return dim if isinstance(dim, int) else dim.value
        if batch is None:
            return word.sub(BATCH, text)
        return batch if text == symbol.value else None  # computed from it: the runtime infers it

    for value in values(model):
        if value.shape is not None:
            value.shape = ir.Shape([settled(dim) for dim in value.shape])


def _rename_input(model: ir.Model, name: str) -> None:
    """Renames the input; a tensor inside that has the name already makes way."""
    for value in list(values(model)):
        if value.name == name:
            value.name = f"{name}_inside"
    model.graph.inputs[0].name = name


def _prepend(model: ir.Model, normalisation: Normalisation) -> None:
    """Puts ``(pixels - scale * mean) / (scale * std)`` before the network."""
    pixels = model.graph.inputs[0]
    users = pixels.uses()
    constants = [
        add_constant(
            model,
            f"preprocessing_{key}",
            (normalisation.scale * np.array(numbers)).astype(np.float32).reshape(1, -1, 1, 1),
        )
        for key, numbers in (("offset", normalisation.mean), ("divisor", normalisation.std))
    ]
    decoded = ir.node("Cast", [pixels], {"to": ir.DataType.FLOAT})
    centred = ir.node("Sub", [decoded.outputs[0], constants[0]])
    prepared = ir.node("Div", [centred.outputs[0], constants[1]])
    model.graph.insert_before(model.graph[0], [decoded, centred, prepared])
    for node, index in users:
        node.replace_input_with(index, prepared.outputs[0])
    pixels.dtype = ir.DataType.UINT8
