"""Writes deployed ONNX files: their inputs, free axes and metadata."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir

from amc_compress.learners.export.onnx_graph import add_constant, clean, values
from amc_compress.learners.export.onnx_options import BATCH, INPUT, SEQUENCE, OnnxOptions
from amc_compress.learners.networks.normalisation import Normalisation


def write(model: ir.Model, path: Path, options: OnnxOptions) -> None:
    """Writes a model with the outside that is wanted; no paths and source lines of its making.

    Args:
        model: With inputs in float32, or integers; changed in place.
        path: The file, written as it goes.
        options: What it is to look like.
    """
    clean(model)
    _name_axes(model, options)
    takes_images = [value.name for value in model.graph.inputs] == [INPUT]
    if options.input_name is not None:
        rename(model.graph.inputs, [options.input_name], model)
    entries = dict(options.metadata)
    if options.preprocessing is not None:
        _prepend(model, options.preprocessing)
        entries = {"input": "uint8 pixels", **entries}
    elif takes_images:
        entries = {"input": "float32 images: (pixel / scale - mean) / std", **entries}
    model.metadata_props.update({key: entries[key] for key in sorted(entries)})
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    onnx.save(proto, path)


def _wanted(model: ir.Model, options: OnnxOptions) -> dict[str, str | int]:
    """Returns the exporter's symbol -> its name, or the number of samples that it is fixed to."""
    wanted: dict[str, str | int] = {}
    for value in model.graph.inputs:
        names = (options.axes or {}).get(value.name or "", {})
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and size.value is not None:
                name = BATCH if axis == 0 else names.get(axis, SEQUENCE)
                wanted.setdefault(size.value, options.batch or name if axis == 0 else name)
    return wanted


def _settle_numbers(model: ir.Model) -> None:
    """Makes numbers of the axes that the exporter calls by a number.

    It asked for any length there and found the network to need this one.
    """
    for value in values(model):
        if value.shape is not None:
            sizes = [dim if isinstance(dim, int) else dim.value for dim in value.shape]
            value.shape = ir.Shape(
                [int(x) if isinstance(x, str) and x.isdigit() else x for x in sizes]
            )


def _name_axes(model: ir.Model, options: OnnxOptions) -> None:
    """Names the free axes of the inputs, or fixes the batch, everywhere they occur."""
    _settle_numbers(model)
    if not (wanted := _wanted(model, options)):
        return
    word = re.compile(rf"\b({'|'.join(map(re.escape, wanted))})\b")

    def settled(dim: int | ir.SymbolicDim) -> int | str | None:
        if isinstance(dim, int) or dim.value is None:
            return dim if isinstance(dim, int) else None
        if dim.value in wanted:
            return wanted[dim.value]
        found = {symbol: wanted[symbol] for symbol in word.findall(dim.value)}
        if any(isinstance(name, int) for name in found.values()):
            return None  # computed from it: the runtime infers it
        return word.sub(lambda symbol: str(found[symbol[0]]), dim.value)

    for value in values(model):
        if value.shape is not None:
            value.shape = ir.Shape([settled(dim) for dim in value.shape])


def rename(tensors: Sequence[ir.Value], names: Sequence[str], model: ir.Model) -> None:
    """Renames inputs or outputs; a tensor inside that has the name already makes way."""
    wanted = dict(zip(names, tensors, strict=True))
    for value in list(values(model)):
        if value.name in wanted and wanted[value.name] is not value:
            value.name = f"{value.name}_inside"
    for name, value in wanted.items():
        value.name = name


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
