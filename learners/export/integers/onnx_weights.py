"""ONNX files of weights in 4-bit blocks, and of 8-bit products whose inputs are rounded in them.

No ranges are calibrated. Layers of up to 4 bits become ``MatMulNBits``, those of 5 to 8 bits
``MatMulInteger`` with inputs whose range is taken anew at each call. Tables have 8 bits. What is
neither product nor table stays in float.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from amc_compress.learners.export import onnx_graph
from amc_compress.learners.export.integers.onnx_blocks import (
    BITS,
    Blocks,
    multiplication,
    own_blocks,
    rounded_blocks,
)
from amc_compress.learners.export.integers.onnx_integers import (
    fits_int8,
    has_integers,
    weight_integers,
)
from amc_compress.learners.export.integers.onnx_quantized import (
    UnsupportedPrecisionError,
)
from amc_compress.learners.export.integers.onnx_tables import store_table
from amc_compress.learners.export.interface import Interface, on_cpu
from amc_compress.learners.export.onnx_compare import Comparison
from amc_compress.learners.export.onnx_file import (
    TOLERANCE,
    ExportResult,
    float_model,
    write_compared,
)
from amc_compress.learners.export.onnx_options import INT4, INT8_DYNAMIC, Integers, OnnxOptions
from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.runtime import explained, quiet
from amc_compress.learners.layers.bit_layers import is_bit_module
from amc_compress.learners.layers.finalise import plain_weights
from amc_compress.learners.layers.quantized import QuantizedWeight, quantized_layers
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.quantization.uniform.quantizer import SMALLEST_SCALE
from amc_compress.learners.tasks.task import Task
from amc_env.validation.sentences import counted, some

DYNAMIC_TOLERANCE = 0.15
"""Where inputs are rounded: a sum in another order can fall on the other side of a half, and that
moves all ranges behind it. The largest of many differences grows with their number: of MiniLM's
hidden states, 1.6 million numbers of 128 sentences, it is 0.10 of the largest number."""

DYNAMIC_MEAN_TOLERANCE = 0.1
"""Of the differences' root mean square, relative to that of the output: 0.057 for the same hidden
states of MiniLM."""

_MOST = 255  # in 8 bits
_LARGEST = 127  # of them signed and symmetric


@dataclass(frozen=True)
class WeightExport(ExportResult):
    """A checked ONNX file of integers.

    Args:
        int4_layers: Layers whose weights are 4-bit blocks.
        int8_layers: Layers that are computed in 8-bit integers.
        tables: Tables of 8-bit integers, of which those rows become float that are read.
        float_layers: Layers with weights that stay in float.
        bytes: Size of the file.
    """

    int4_layers: tuple[str, ...]
    int8_layers: tuple[str, ...]
    tables: tuple[str, ...]
    float_layers: tuple[str, ...]
    bytes: int

    def said(self) -> str:
        """Returns which layers became what, in a line."""
        left = f"; in float: {some(self.float_layers, 3)}" if self.float_layers else ""
        return (
            f"{counted(len(self.int4_layers), 'layer')} in 4-bit blocks, "
            f"{len(self.int8_layers)} in 8-bit products, {counted(len(self.tables), 'table')} in "
            f"8 bits{left}"
        )


def export_weights(
    model: nn.Module,
    example_input: object,
    path: str | Path,
    integers: Integers | None = None,
    *,
    images: object = None,
    options: OnnxOptions | None = None,
    task: str | Task = "agreement",
    part: str | None = None,
) -> WeightExport:
    """Writes a network as ONNX with weights in 4 or 8 bits, without calibration, and proves it.

    The file is compared with the torch network of the same rounding: the weights that the file
    holds, and inputs rounded as it rounds them.

    Args:
        model: Float, or of a learner that quantizes: then its linear layers of up to 4 bits become
            blocks with exactly its integers, those of 5 to 8 bits 8-bit integers with a scale per
            output, and others stay in float. Inputs that it rounds itself are not. Not changed.
        example_input: What the network is called with, see ``export_onnx``.
        path: The file to write, atomically.
        integers: Which integers a float network gets; 4-bit blocks of 32 if not given.
        images: Inputs on which both are compared; ``example_input`` if not given.
        options: Batch, names and metadata of the file.
        task: Says how alike both answer, see ``export_onnx``.
        part: The submodule to write, see ``export_onnx``.

    Raises:
        ExportError: If the network cannot be exported, or the file computes something else.
        UnsupportedPrecisionError: For float16, or if no layer can be written so.
    """
    network, options = take_in(model, "cpu").network, options or OnnxOptions()
    if options.half:
        raise UnsupportedPrecisionError(
            "Expected a file in float32 for integers of weights, got float16; leave --half out."
        )
    example = on_cpu(network, example_input)
    seen = example if images is None else on_cpu(network, images)
    if part is not None:
        _, example = part_of(network, part, example)
        network, seen = part_of(network, part, seen)
    plain = plain_weights(network)
    interface = Interface(plain, example)
    free = dataclasses.replace(options, batch=None)
    graph = float_model(plain, interface, free)
    writer = _Writer(network, plain, graph, integers or Integers())
    with quiet():
        written = writer.write()
    tolerance = DYNAMIC_TOLERANCE if writer.dynamic else TOLERANCE
    mean = DYNAMIC_MEAN_TOLERANCE if writer.dynamic else math.inf
    check = Comparison(writer.reference(), interface, seen, options, tolerance, mean, task)
    result = write_compared(written, check, Path(path))
    return WeightExport(
        **vars(result),
        int4_layers=tuple(writer.blocks),
        int8_layers=tuple(writer.dynamic),
        tables=tuple(writer.tables),
        float_layers=tuple(writer.left()),
        bytes=result.path.stat().st_size,
    )


class _Writer:
    """Turns the float graph of a network into one with integers.

    Args:
        network: With its quantizers.
        plain: The same without, holding the weights as used.
        model: Its graph.
        integers: What was asked for.
    """

    def __init__(
        self, network: nn.Module, plain: nn.Module, model: ir.Model, integers: Integers
    ) -> None:
        self._plain, self._model, self._integers = plain, model, integers
        onnx_graph.clean(model)
        layers = {name: layer for name, layer in plain.named_modules() if _is_linear(layer)}
        held = {name: layer.get_parameter("weight").detach() for name, layer in layers.items()}
        found = onnx_graph.weighted_nodes(model, {n: w.numpy() for n, w in held.items()})
        # A layer that is called twice would have its integers stored twice.
        self._nodes = {name: nodes[0] for name, nodes in found.items() if len(nodes) == 1}
        self._weights = {name: _rows(self._nodes[name], held[name]) for name in self._nodes}
        # Layers such as those of GPT-2 hold an input a row.
        self._turned = {n for n, rows in self._weights.items() if not torch.equal(rows, held[n])}
        quantized = quantized_layers(network)
        self.blocks: dict[str, Blocks] = {}
        self.dynamic: list[str] = []
        self.tables: dict[str, Tensor] = {}
        self._store_tables(quantized)
        for name, weight in self._weights.items():
            if quantized:
                self._own(name, quantized.get(name))
            elif integers.kind == INT4:
                self.blocks[name] = rounded_blocks(
                    weight, integers.block_size, symmetric=integers.symmetric
                )
            else:
                self.dynamic.append(name)
        if not self.blocks and not self.dynamic:
            raise UnsupportedPrecisionError(
                "Expected linear layers with weights of at most 8 bits, got none that a file of "
                "integers could hold; export it as it is."
            )

    def _own(self, name: str, layer: Any) -> None:
        """Chooses by the bits of a quantized layer."""
        quantizer = None if layer is None else layer.weight_quantizers().get("weight")
        kind, blocks = self._integers.kind, None
        if quantizer is not None and kind == INT4 and quantizer.bits <= BITS:
            blocks = own_blocks(QuantizedWeight(layer, "weight"), self._integers.block_size)
        if blocks is not None:
            self.blocks[name] = blocks
        elif quantizer is not None and (kind == INT8_DYNAMIC or quantizer.bits > BITS):
            self.dynamic.append(name)

    def _store_tables(self, quantized: Mapping[str, Any]) -> None:
        """Writes tables in 8 bits: with their own integers, or with a scale per column."""
        for name, layer in self._plain.named_modules():
            if not isinstance(layer, nn.Embedding):
                continue
            used = layer.weight.detach()
            if quantized:
                weight = (
                    None if name not in quantized else QuantizedWeight(quantized[name], "weight")
                )
                if weight is None or not has_integers(weight.quantizer):
                    continue
                integers, scales = weight_integers(weight)
                if not fits_int8(integers):
                    continue
            else:
                steps = used.abs().amax(0).clamp(min=SMALLEST_SCALE) / _LARGEST
                integers, scales = (used / steps).round().numpy(), steps.numpy()
            if store_table(self._model, name, used.numpy(), integers, scales):
                self.tables[name] = torch.from_numpy(integers * scales).float()

    def left(self) -> list[str]:
        """Returns the layers with weights that stay in float."""
        done = {*self.blocks, *self.dynamic, *self.tables}
        return [
            name
            for name, layer in self._plain.named_modules()
            if (is_bit_module(layer) or _is_linear(layer)) and name not in done
        ]

    def write(self) -> ir.Model:
        """Returns the graph with integers."""
        for name, node in self._nodes.items():
            if name in self.blocks or name in self.dynamic:
                self._product(name, node)
        onnx_graph.clean(self._model)
        if self.dynamic:
            self._model = self._dynamically()
        for name, blocks in self.blocks.items():
            old = self._model.graph.node(name)
            new = multiplication(self._model, name, old.inputs[0], blocks)
            onnx_graph.replace_node(old, [new])
        onnx_graph.clean(self._model)
        return self._model

    def _product(self, name: str, node: ir.Node) -> None:
        """Makes one product of a layer, under its name, and a sum of its bias."""
        weight = np.ascontiguousarray(self._weights[name].numpy().T)
        constant = onnx_graph.add_constant(self._model, f"{name}.matrix", weight)
        new = [ir.node("MatMul", [node.inputs[0], constant], name=name)]
        if node.op_type == "Gemm" and len(node.inputs) > 2:
            new.append(ir.node("Add", [new[0].outputs[0], node.inputs[2]]))
        onnx_graph.replace_node(node, new)

    def _dynamically(self) -> ir.Model:
        """Lets ONNX Runtime's quantizer write the products in 8-bit integers."""
        from onnxruntime.quantization import QuantType, quantize_dynamic

        with tempfile.TemporaryDirectory() as folder, explained({}):
            out = Path(folder) / "int8.onnx"
            quantize_dynamic(
                ir.to_proto(self._model),
                str(out),
                op_types_to_quantize=["MatMul"],
                per_channel=True,
                weight_type=QuantType.QInt8,
                nodes_to_quantize=self.dynamic,
            )
            return ir.from_proto(onnx.load(out))

    def reference(self) -> nn.Module:
        """Returns the torch network of the file's rounding."""
        constants = self._model.graph.initializers
        for name, weight in {
            **self.tables,
            **{n: b.values() for n, b in self.blocks.items()},
        }.items():
            self._replace(name, weight)
        for name in self.dynamic:
            steps, scale = (
                torch.from_numpy(np.array(onnx_graph.constant(constants[f"{name}.matrix_{end}"])))
                for end in ("quantized", "scale")
            )
            self._replace(name, (steps.float() * scale).T)
            layer = self._plain.get_submodule(name)
            layer.register_forward_pre_hook(lambda _, args: (_rounded(args[0]), *args[1:]))
        return self._plain

    def _replace(self, name: str, weight: Tensor) -> None:
        """Gives a layer other weights; what it shares them with keeps its own."""
        layer = self._plain.get_submodule(name)
        if name in self._turned:
            weight = weight.t()
        layer.weight = nn.Parameter(weight.contiguous(), requires_grad=False)


def _is_linear(layer: nn.Module) -> bool:
    weight = layer._parameters.get("weight")
    return weight is not None and weight.dim() == 2 and not isinstance(layer, nn.Embedding)


def _rows(node: ir.Node, weight: Tensor) -> Tensor:
    """Returns weights with an output a row, as a node of the graph multiplies by them."""
    stored: Tensor = torch.from_numpy(np.array(onnx_graph.constant(node.inputs[1])))
    return stored if onnx_graph.output_axis(node) == 0 else stored.t()


def _rounded(x: Tensor) -> Tensor:
    """Rounds a tensor as ``DynamicQuantizeLinear`` does: 8 bits from its least to its largest."""
    low, high = x.min().clamp(max=0), x.max().clamp(min=0)
    scale = (high - low) / _MOST
    zero = (-low / scale).round().clamp(0, _MOST)
    steps: Tensor = ((x / scale).round() + zero).clamp(0, _MOST) - zero
    return steps * scale
