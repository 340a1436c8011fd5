"""The float export of a quantized network turned into one of its own 8-bit integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.version_converter import convert_version
from torch import Tensor, nn

from amc_compress.learners.export import onnx_graph
from amc_compress.learners.export.integers.onnx_conv_outputs import round_conv_outputs
from amc_compress.learners.export.integers.onnx_integers import (
    fits_int8,
    has_integers,
    runs_in_integers,
    scales_of,
    weight_integers,
)
from amc_compress.learners.export.integers.onnx_quantizer import (
    QUANTIZED_OPS,
    Samples,
    constant_sums,
    name_of,
    run_quantizer,
)
from amc_compress.learners.export.integers.onnx_tables import (
    is_looked_up,
    store_gates,
    store_tables,
)
from amc_compress.learners.export.onnx_graph import add_constant
from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.layers.quantized import (
    QuantizedLayer,
    QuantizedWeight,
    quantized_weights,
)
from amc_compress.learners.layers.weight_forms import is_matrix_layer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer

SHORTCUTS = ("shared", "own")
"""Whether shortcuts read the clipped input of the layer next to them, or the whole range."""

# A bias is stored as a 32-bit integer of step (input scale x weight scale).
_LARGEST_BIAS = 2.0**30
_INT4_OPSET = 21


class IntegerWriter:
    """Turns the float export of a quantized network into one with the network's own integers."""

    def __init__(
        self,
        network: nn.Module,
        model: ir.Model,
        calibration: Samples,
        *,
        method: str,
        weight_only: str,
        shortcuts: str,
    ) -> None:
        self.model, self.calibration, self.method = model, calibration, method
        self.weight_only, self.shortcuts = weight_only, shortcuts
        weights = quantized_weights(network)
        self.tables = {n: w for n, w in weights.items() if is_looked_up(w)}
        self.weights = {n: w for n, w in weights.items() if n not in self.tables}
        onnx_graph.simplify(model)
        self.nodes = onnx_graph.weighted_nodes(
            model, {n: w.used().detach().cpu().numpy() for n, w in self.weights.items()}
        )
        self.overrides: dict[str, list[dict[str, Any]]] = {}

    def write(self) -> ir.Model:
        """Returns the quantized model.

        Raises:
            ExportError: If the exporter has rewritten a layer's weights.
        """
        lost = [
            name
            for name, nodes in self.nodes.items()
            if not (nodes or isinstance(self.weights[name].layer, nn.RNNBase))
        ]
        if lost:
            raise ExportError(
                f"The exporter has rewritten the weights of {', '.join(lost)} (a batch norm that "
                f"follows them?), their integers are lost; fold the norms first or leave these "
                f"layers float with ignore."
            )
        self._set_weights()
        self._set_inputs()
        model = self.model
        if self.overrides:
            model = run_quantizer(
                model,
                self.calibration,
                self.method,
                overrides=self.overrides,
                exclude=[*self._float_nodes(), *constant_sums(model)],
            )
            round_conv_outputs(model, ir.to_proto(self.model), self.calibration)
        return self._store_weight_only(model)

    def _float_nodes(self) -> list[str]:
        """Returns the nodes to leave alone: float layers, and what follows float layers only."""
        integer = {node for name in self._integer_layers() for node in self.nodes[name]}
        behind: set[ir.Value | None] = set()  # tensors with an integer layer upstream
        left = []
        for node in self.model.graph:
            near = not behind.isdisjoint(node.inputs)
            if node.op_type in onnx_graph.FLOAT_LAYERS:
                near = node in integer
            if near:
                behind.update(node.outputs)
            else:
                left.append(node.name or "")
        return left

    def _integer_layers(self) -> list[str]:
        return [
            name
            for name, weight in self.weights.items()
            if runs_in_integers(weight.layer) and not self._is_transposed(name)
        ]

    def _is_transposed(self, name: str) -> bool:
        """Whether a layer is a transposed convolution, for which there are no integer kernels."""
        return any(node.op_type == "ConvTranspose" for node in self.nodes[name])

    def _set_weights(self) -> None:
        """Hands the integer layers' scales to the quantizer, which then finds their integers."""
        from onnxruntime.quantization import QuantType

        for name in self._integer_layers():
            integers, scales = _outputs_first(self.weights[name])
            _make_room_for_bias(self.weights[name].layer, integers, scales)
            values = integers * scales.reshape(-1, *(1,) * (integers.ndim - 1))
            for node in self.nodes[name]:
                axis = onnx_graph.output_axis(node)
                weight = name_of(node.inputs[1])
                turned = values if axis == 0 else values.T
                onnx_graph.add_constant(
                    self.model, weight, np.ascontiguousarray(turned, dtype=np.float32)
                )
                self.overrides[weight] = [
                    {"axis": axis, "scale": s, "zero_point": 0, "quant_type": QuantType.QInt8}
                    for s in scales
                ]

    def _set_inputs(self) -> None:
        """Gives the inputs of the integer layers their scales and zero points.

        Where layers of different scales read one tensor, the widest range becomes the tensor's,
        and the others quantize it once more, a copy of it; so its producer needs only one 8-bit
        output. With ``shortcuts="own"`` they do so as well where a sum reads the tensor, which
        gets a range of its own.
        """
        from onnxruntime.quantization import QuantType

        users: dict[ir.Value, dict[ir.Node, tuple[float, int]]] = {}
        for name in self._integer_layers():
            for node in self.nodes[name]:
                assert node.inputs[0] is not None
                read = _input_parameters(self.weights[name].layer)
                users.setdefault(node.inputs[0], {})[node] = read
        for tensor, wanted in users.items():
            widest: tuple[float, int] | None = max(wanted.values(), key=lambda user: user[0])
            if self.shortcuts == "own" and any(
                reader not in wanted and reader.op_type in QUANTIZED_OPS
                for reader in tensor.consumers()
            ):
                widest = None
            for node, (scale, zero) in wanted.items():
                own = tensor
                if (scale, zero) != widest:
                    copied = ir.node("Identity", [tensor])
                    node.prepend(copied)
                    own = copied.outputs[0]
                    node.replace_input_with(0, own)
                self.overrides[name_of(own)] = [
                    {
                        "scale": np.asarray(scale, np.float32),
                        "zero_point": np.asarray(zero, np.uint8),
                        "quant_type": QuantType.QUInt8,
                    }
                ]

    def _store_weight_only(self, model: ir.Model) -> ir.Model:
        """Replaces float weights by integers that are multiplied by their scales when they run."""
        done = self._integer_layers()
        small = {
            name: _outputs_first(weight)
            for name, weight in self.weights.items()
            if self.weight_only == "integer" and name not in done and has_integers(weight.quantizer)
        }
        small = {n: (i, s) for n, (i, s) in small.items() if fits_int8(i)}
        fits = {n for n, (i, _) in small.items() if i.min() >= -8 and i.max() <= 7}
        if fits:
            model = ir.from_proto(convert_version(ir.to_proto(model), _INT4_OPSET))
        for name, (integers, scales) in small.items():
            kind = ir.DataType.INT4 if name in fits else ir.DataType.INT8
            for old in self.nodes[name]:
                node = model.graph.node(old.name or "")
                if node.op_type == "ConvTranspose":
                    axis, stored = _axis(self.weights[name]), integers
                else:
                    axis = onnx_graph.output_axis(node)
                    stored = np.ascontiguousarray(integers if axis == 0 else integers.T)
                constants = [
                    onnx_graph.add_constant(model, f"{name}.integers", stored.astype(kind.numpy())),
                    onnx_graph.add_constant(model, f"{name}.scales", scales),
                ]
                decode = ir.node("DequantizeLinear", constants, {"axis": axis})
                node.prepend(decode)
                node.replace_input_with(1, decode.outputs[0])
        if self.weight_only == "integer":
            store_tables(model, self.tables)
            store_gates(model, {n: w for n, w in self.weights.items() if not self.nodes[n]})
        self._round_inputs(model)
        onnx_graph.clean(model)
        return model

    def _round_inputs(self, model: ir.Model) -> None:
        """Rounds the inputs of layers that are computed in float to their 8-bit numbers."""
        for name in filter(self._is_transposed, self.weights):
            layer = self.weights[name].layer
            if layer.input_quantizer is None:
                continue
            scale, zero = _input_parameters(layer)
            steps = [
                add_constant(model, f"{name}.input_scale", np.asarray(scale, np.float32)),
                add_constant(model, f"{name}.input_zero", np.asarray(zero, np.uint8)),
            ]
            for old in self.nodes[name]:
                node = model.graph.node(old.name or "")
                rounded = ir.node("QuantizeLinear", [node.inputs[0], *steps])
                decoded = ir.node("DequantizeLinear", [rounded.outputs[0], *steps])
                node.prepend([rounded, decoded])
                node.replace_input_with(0, decoded.outputs[0])


def _outputs_first(weight: QuantizedWeight) -> tuple[np.ndarray, np.ndarray]:
    """Returns integers and scales as a linear layer would have them, where it is ``x @ weight``."""
    integers, scales = weight_integers(weight)
    if is_matrix_layer(weight.layer):
        integers = np.ascontiguousarray(integers.T)
    return integers, scales


def _axis(weight: QuantizedWeight) -> int:
    quantizer = weight.quantizer
    assert isinstance(quantizer, UniformQuantizer)
    return quantizer.axis


def _input_parameters(layer: QuantizedLayer) -> tuple[float, int]:
    """Returns scale and zero point of a layer's input as unsigned 8-bit integers."""
    quantizer = layer.input_quantizer
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"Expected a uniform input, got {type(quantizer).__name__}.")
    smallest = -128 if quantizer.symmetric else quantizer.quant_min
    return float(scales_of(quantizer, 1)[0]), int(quantizer.zero_point) - smallest


def _make_room_for_bias(layer: QuantizedLayer, integers: np.ndarray, scales: np.ndarray) -> None:
    """Widens the scales of channels whose bias would not fit into 32 bits, in place.

    The weights of such a channel add less than a thousandth of their own bias, mostly because all
    of them are 0.
    """
    if not isinstance(layer.bias, Tensor):
        return
    bias = np.abs(layer.bias.detach().cpu().numpy())
    factor = bias / (_LARGEST_BIAS * _input_parameters(layer)[0] * scales.astype(np.float64))
    for channel in np.flatnonzero(factor > 1):
        integers[channel] = np.rint(integers[channel] / factor[channel])
        scales[channel] *= factor[channel]
