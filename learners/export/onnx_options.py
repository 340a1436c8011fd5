"""Input, batch axis and metadata of deployed ONNX files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.export.onnx_graph import forget_origins, initializers
from amc_compress.learners.networks.normalisation import Normalisation

BATCH = "batch"
INPUT = "images"
OUTPUT = "logits"
_NAME = re.compile(r"[A-Za-z_]\w*")
_LARGEST_PIXEL = 255.0  # what 8 bits hold


@dataclass(frozen=True)
class OnnxOptions:
    """How a network is written as ONNX.

    Args:
        opset: Version of the operator set; the exporter's choice if not given.
        batch: Number of images per call; any number if not given.
        half: Whether to compute in float16. Inputs and outputs stay float32.
        input_name: Name of the input tensor.
        preprocessing: Put into the file: its input is then uint8 pixels, not normalised.
        metadata: Key -> text, stored in the file.

    Raises:
        ValueError: If an option is out of range.
    """

    opset: int | None = None
    batch: int | None = None
    half: bool = False
    input_name: str = INPUT
    preprocessing: Normalisation | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.opset is not None and not 18 <= self.opset <= 23:
            raise ValueError(f"Expected an --opset from 18 to 23, got {self.opset}.")
        if self.batch is not None and self.batch < 1:
            raise ValueError(f"Expected --batch >= 1, got {self.batch}.")
        if not _NAME.fullmatch(self.input_name):
            raise ValueError(
                f"Expected --input-name as a name of letters, digits and _, got "
                f"{self.input_name!r}."
            )
        if self.input_name == OUTPUT:
            raise ValueError(f"Expected another --input-name than {OUTPUT!r}, which is the output.")
        scale = _LARGEST_PIXEL if self.preprocessing is None else self.preprocessing.scale
        if scale > _LARGEST_PIXEL:
            raise ValueError(
                f"Expected 8-bit pixels for --include-preprocessing, got data with pixels up to "
                f"{scale:g}; leave the option out."
            )

    def feed(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Returns images as the network takes them, and as the file takes them.

        Args:
            images: Normalised float32 images, shape (N, C, H, W).
        """
        if self.preprocessing is None:
            return images, images
        mean = torch.tensor(self.preprocessing.mean).view(-1, 1, 1)
        std = torch.tensor(self.preprocessing.std).view(-1, 1, 1)
        pixels = ((images * std + mean) * self.preprocessing.scale).round()
        pixels = pixels.clamp(0, _LARGEST_PIXEL).to(torch.uint8)
        return self.preprocessing(pixels), pixels


def file_metadata(
    class_names: Sequence[str], normalisation: Normalisation, image_shape: Sequence[int]
) -> dict[str, str]:
    """Returns what users of the file need to know: classes, and how images are prepared.

    Args:
        class_names: By number of the output.
        normalisation: Of the images.
        image_shape: (C, H, W).
    """
    return {
        "classes": json.dumps(list(class_names)),
        "image_shape": json.dumps(list(image_shape)),
        "scale": json.dumps(normalisation.scale),
        "mean": json.dumps(list(normalisation.mean)),
        "std": json.dumps(list(normalisation.std)),
    }


def finish(path: Path, options: OnnxOptions) -> None:
    """Gives a written file its outside, in place; paths and source lines of its making are removed.

    Args:
        path: An ONNX file with one input of float32 images.
        options: What it is to look like.
    """
    import onnx

    model = onnx.load(path)
    forget_origins(model)
    _set_batch(model, options.batch)
    _rename_input(model, options.input_name)
    how = "float32 images: (pixel / scale - mean) / std"
    if options.preprocessing is not None:
        _prepend(model, options.preprocessing)
        how = "uint8 pixels"
    entries = {"input": how, **options.metadata}
    onnx.helper.set_model_props(model, {key: entries[key] for key in sorted(entries)})
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _set_batch(model: Any, batch: int | None) -> None:
    """Names the free axis of the input, or fixes it, everywhere it occurs."""
    first = model.graph.input[0].type.tensor_type.shape.dim[0]
    symbol = first.dim_param
    if not symbol:
        return
    word = re.compile(rf"\b{re.escape(symbol)}\b")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for dim in value.type.tensor_type.shape.dim:
            if batch is not None and dim.dim_param == symbol:
                dim.dim_value = batch
            elif batch is not None and word.search(dim.dim_param):
                dim.Clear()  # computed from the batch: the runtime infers it
            elif dim.dim_param:
                dim.dim_param = word.sub(BATCH, dim.dim_param)


def _rename_input(model: Any, name: str) -> None:
    """Renames the input; a tensor inside that has the name already makes way."""
    old = model.graph.input[0].name
    if old == name:
        return
    new = {old: name, name: f"{name}_inside"}
    for node in model.graph.node:
        for names in (node.input, node.output):
            for index, tensor in enumerate(names):
                names[index] = new.get(tensor, tensor)
    for value in (*model.graph.input, *model.graph.value_info, *model.graph.initializer):
        value.name = new.get(value.name, value.name)


def _prepend(model: Any, normalisation: Normalisation) -> None:
    """Puts ``(pixels - scale * mean) / (scale * std)`` before the network."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper

    graph = model.graph
    taken = {*initializers(model), *(name for node in graph.node for name in node.output)}
    source = graph.input[0]
    name, prepared = source.name, "prepared"
    while prepared in taken:
        prepared += "_"
    for node in graph.node:
        for index, tensor in enumerate(node.input):
            if tensor == name:
                node.input[index] = prepared
    scale = normalisation.scale
    constants = {"offset": normalisation.mean, "divisor": normalisation.std}
    for key, values in constants.items():
        array = (scale * np.array(values, np.float64)).astype(np.float32).reshape(1, -1, 1, 1)
        graph.initializer.append(numpy_helper.from_array(array, f"{prepared}_{key}"))
    nodes = [
        helper.make_node("Cast", [name], [f"{prepared}_float"], to=TensorProto.FLOAT),
        helper.make_node(
            "Sub", [f"{prepared}_float", f"{prepared}_offset"], [f"{prepared}_centred"]
        ),
        helper.make_node("Div", [f"{prepared}_centred", f"{prepared}_divisor"], [prepared]),
    ]
    for place, node in enumerate(nodes):
        node.name = f"{prepared}_{place}"
        graph.node.insert(place, node)
    source.type.tensor_type.elem_type = TensorProto.UINT8
