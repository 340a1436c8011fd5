"""Whole networks as small ONNX models whose layers can be told apart: float32 and 8-bit.

What ONNX Runtime does with a layer depends on its neighbours (layouts, fusions, caches), so layers
are measured inside their network. Values do not matter for time; only shapes do.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantizer import Samples, quantize_float
from amc_compress.learners.export.interface import Flat, Interface
from amc_compress.learners.export.onnx_graph import (
    add_constant,
    constant,
    only_reader,
    replace_node,
)
from amc_compress.learners.export.runtime import optimised, quiet
from amc_compress.learners.layers.structure import fold_norms, foldable_norms
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.tasks.inputs import Inputs, count
from amc_compress.learners.tracing.slots import weight_name
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env import CompressionError, LayerGraph
from amc_env.costs.cost_table import measured_layers
from amc_env.validation.sentences import first_line

PRECISIONS = ("fp32", "int8")
RECURRENT = ("LSTM", "GRU", "RNN")
"""Operators that hold all matrices of a recurrent layer."""

_MARK = "amc{}_"
_OPSET = 20


class LatencyError(CompressionError):
    """A network cannot be measured."""


def prepare(
    model: nn.Module, example: Inputs, seed: int = 0, *, part: str | None = None
) -> TracedModel:
    """Returns a traced copy of a network, without equal tensors, which exporters would merge.

    Networks that were just made have batch norms and biases that are all alike.

    Args:
        model: The network; not changed.
        example: What it is called with.
        seed: Of the numbers put into the copy.
        part: The submodule that is cut, if not the whole network.
    """
    model = take_in(model, "cpu").network
    traced = trace(model, example, part=part)
    # Only now, because random norms make activations too large for the proof of the tracing.
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            if tensor.is_floating_point():
                noise = torch.rand(tensor.shape, generator=generator)
                if tensor.dim() < 2:  # positive, because variances are among them
                    tensor.copy_(0.5 + 0.5 * noise)
                else:  # as He et al. 2015, so that activations neither vanish nor explode
                    tensor.copy_((noise - 0.5) * (24.0 / max(tensor[0].numel(), 1)) ** 0.5)
    return traced


def cut(traced: TracedModel, kept: Mapping[str, int], part: str | None = None) -> nn.Module:
    """Returns the network with the first ``kept[group]`` units of each group, norms folded.

    Args:
        traced: The network.
        kept: Units of each group; groups that are missing stay whole.
        part: The submodule to return alone.
    """
    network = traced.slice({name: torch.arange(count) for name, count in kept.items()})
    network = network.get_submodule(part or "")
    norms = foldable_norms(network)
    # A norm behind a linear layer may run over another axis than the layer's outputs.
    fold_norms(
        network, {n: x for n, x in norms.items() if isinstance(network.get_submodule(x), nn.Conv2d)}
    )
    return network.eval()


def to_onnx(
    network: nn.Module, graph: LayerGraph, inputs: Inputs, part: str | None = None
) -> onnx.ModelProto:
    """Returns a network as an ONNX model whose layers bear marks.

    Args:
        network: As :func:`cut` returns it.
        graph: Of the uncut network, for the layers' names.
        inputs: What it is called with; the model is for those shapes only.
        part: Which submodule of the uncut network it is, if not the whole.

    Raises:
        LatencyError: If it cannot be exported, or a layer is not found again in the export.
    """
    buffer: Any = io.BytesIO()  # which the exporter takes, but does not say so
    interface = Interface(network, inputs, count(inputs))
    asked = network if interface.is_plain else Flat(network, interface.example).eval()
    try:
        with quiet():
            # The older exporter: 0.2 s instead of 4 s, and it leaves the layers as they are.
            torch.onnx.export(
                asked, interface.tensors(None), buffer, dynamo=False, opset_version=_OPSET,
                input_names=list(interface.inputs), output_names=list(interface.outputs),
            )  # fmt: skip
    except Exception as error:  # whatever the exporter meets in a user's forward
        raise LatencyError(
            f"This network cannot be exported to ONNX for measuring ({first_line(error)}); make a "
            f"table elsewhere (docs/latency_tables.md)."
        ) from error
    model = _simplified(onnx.load_from_string(buffer.getvalue()))
    _reshape(model)
    prefix = "" if part is None else f"{part}."
    _mark(model, network, [x.name.removeprefix(prefix) for x in measured_layers(graph)])
    return ir.to_proto(model)


def _simplified(model: onnx.ModelProto) -> ir.Model:
    """Folds constants as ONNX Runtime does before quantization (see ``quant_pre_process``)."""
    return ir.from_proto(onnx.shape_inference.infer_shapes(optimised(model, "BASIC")))


def _reshape(model: ir.Model) -> None:
    """Turns ``Flatten`` into the newer exporter's ``Reshape``, which runs in 8 bits."""
    for node in model.graph:
        if node.op_type == "Flatten" and node.attributes.get_int("axis", 1) == 1:
            shape = add_constant(model, f"{node.outputs[0].name}_shape", np.array([0, -1]))
            replace_node(node, [ir.node("Reshape", [node.inputs[0], shape])])


def _mark(model: ir.Model, network: nn.Module, layers: Sequence[str]) -> None:
    """Names the node of every layer, its output, and an activation behind it, by its number.

    ONNX Runtime names what it fuses after one of these.
    """
    parameters = dict(network.named_parameters())
    names = [weight_name(layer, parameters) for layer in layers]
    numbers = {
        key: number
        for number, name in enumerate(names)
        if name is not None
        for key in _keys(name, parameters)
    }
    found = set()
    for node in model.graph:
        weight = constant(node.inputs[1]) if len(node.inputs) > 1 else None
        if weight is not None and node.op_type in RECURRENT:
            weight = np.sort(weight, axis=None)
        number = None if weight is None else numbers.get(weight.tobytes())
        if number is None:
            continue
        found.add(number)
        node.name = _MARK.format(number)
        output = node.outputs[0]
        activation = only_reader(output, "Relu") or only_reader(output, "Clip")
        outputs = [output] if activation is None else [output, activation.outputs[0]]
        for value, end in zip(outputs, ("out", "act"), strict=False):
            if not value.is_graph_output():
                value.name = f"{node.name}{end}"
    if lost := [name for number, name in enumerate(layers) if number not in found]:
        raise LatencyError(
            f"The exported network has no layer of its own for {', '.join(lost[:5])}; only "
            f"convolutions and linear layers that are called once can be measured."
        )


def _keys(name: str, parameters: Mapping[str, Tensor]) -> Iterator[bytes]:
    """Yields what the weight of a node may be, as bytes."""
    weight = parameters[name].detach()
    yield weight.contiguous().numpy().tobytes()
    if weight.dim() == 2:  # matrix products hold it transposed
        yield weight.t().contiguous().numpy().tobytes()
    if ".weight_ih_l" in f".{name}":  # of both directions, the gates in another order
        both = [weight, *(parameters[x].detach() for x in (f"{name}_reverse",) if x in parameters)]
        yield torch.cat([x.flatten() for x in both]).sort().values.numpy().tobytes()


def marked_layer(name: str) -> int | None:
    """Returns the number of the layer whose mark a node's name bears."""
    if not name.startswith("amc"):
        return None
    digits = name[3:].partition("_")[0]
    return int(digits) if digits.isdigit() else None


def to_int8(model: onnx.ModelProto, samples: Samples) -> onnx.ModelProto:
    """Returns the model as ``post_training_int8`` would write it.

    Args:
        model: As :func:`to_onnx` returns it.
        samples: For the ranges of the activations; which ones does not matter for time.
    """
    with quiet():
        return ir.to_proto(quantize_float(ir.from_proto(model), samples, "minmax"))
