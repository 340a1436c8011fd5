"""The float export of a network turned into one of 8-bit integers, by ONNX Runtime's quantizer."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx.version_converter import convert_version
from torch import Tensor, nn

from amc_compress.learners.export import onnx_graph
from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.export.runtime import optimised
from amc_compress.learners.layers.quantized import QuantizedLayer, quantized_layers
from amc_compress.learners.quantization.uniform.quantizer import SMALLEST_SCALE, UniformQuantizer

CALIBRATION_METHODS = ("minmax", "percentile", "entropy")
"""How ranges are found that a network does not have itself."""

SHORTCUTS = ("shared", "own")
"""Whether shortcuts read the clipped input of the layer next to them, or the whole range."""

# Operators that have an 8-bit kernel, and those that only move numbers around. Batch norms and
# softmax are left in float: they are rare once norms are folded, and 8 bits harm them.
_MATH_OPS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
_MOVE_OPS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad")

Samples: TypeAlias = Mapping[str, Tensor]
"""Input -> tensor with the samples first, on the CPU, in the type that the input has."""

_BATCH = 32
# A bias is stored as a 32-bit integer of step (input scale x weight scale).
_LARGEST_BIAS = 2.0**30
_INT4_OPSET = 21


def runs_in_integers(layer: QuantizedLayer) -> bool:
    """Returns whether a layer's weights and inputs are both integers times one scale."""
    weights = layer.weight_quantizer
    return layer.input_quantizer is not None and has_integers(weights)


def has_integers(quantizer: Any) -> bool:
    """Returns whether the numbers are integers times one scale per tensor or channel."""
    return isinstance(quantizer, UniformQuantizer) and quantizer.granularity != "split"


def weight_integers(layer: QuantizedLayer) -> tuple[np.ndarray, np.ndarray]:
    """Returns a layer's weights in units of their scales, int32 (out, in, ...), and the scales.

    The zero points are subtracted, because ONNX Runtime wants the same one in all channels.

    Args:
        layer: A layer for whose weights :func:`has_integers` holds.
    """
    quantizer, weight = layer.weight_quantizer, layer.weight.detach()
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"Expected uniform weights, got {type(quantizer).__name__}.")
    zero = quantizer.zero_point.view(-1, *(1,) * (weight.dim() - 1)).to(torch.int32)
    integers = quantizer.encode(weight).to(torch.int32) + quantizer.quant_min - zero
    if layer.weight_mask is not None:
        integers = integers * layer.weight_mask
    return integers.cpu().numpy(), _scales(quantizer, len(weight))


def fits_int8(integers: np.ndarray) -> bool:
    """Returns whether all are in -128 .. 127."""
    return bool(integers.min() >= -128 and integers.max() <= 127)


def _scales(quantizer: UniformQuantizer, count: int) -> np.ndarray:
    """Returns the scales as used, float32, shape (count,), one for each channel."""
    scale = quantizer.scale.detach().float().cpu().numpy()
    if quantizer.learned:  # as the quantizer does: a gradient step may carry it across zero
        scale = np.maximum(scale, np.float32(SMALLEST_SCALE))
    return np.broadcast_to(scale, (count,)).copy()


def quantize_float(model: ir.Model, calibration: Samples, method: str) -> ir.Model:
    """Quantizes a float model to 8 bits: signed weights per channel, unsigned activations."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(ir.to_proto(model), str(prepared))  # folds what is left of norms
        model = ir.from_proto(onnx.load(prepared))
    onnx_graph.simplify(model)
    return run_quantizer(model, calibration, method, exclude=_constant_sums(model))


def run_quantizer(
    model: ir.Model,
    calibration: Samples,
    method: str,
    *,
    overrides: dict[str, list[dict[str, Any]]] | None = None,
    exclude: list[str] | None = None,
) -> ir.Model:
    """Lets ONNX Runtime's quantizer make an 8-bit twin of a float model.

    Args:
        model: The float model.
        calibration: Samples for the ranges.
        method: How ranges are taken from them.
        overrides: Tensor -> what to take instead.
        exclude: Nodes to leave in float.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "int8.onnx"
        quantize_static(
            ir.to_proto(model),
            str(out),
            _reader(model, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=[*_MATH_OPS, *_MOVE_OPS],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=exclude or [],
            calibrate_method={
                "minmax": CalibrationMethod.MinMax,
                "percentile": CalibrationMethod.Percentile,
                "entropy": CalibrationMethod.Entropy,
            }[method],
            extra_options={
                # Only what an integer kernel reads becomes 8 bits: sums before an activation and
                # the network's outputs keep their precision.
                "OpTypesToExcludeOutputQuantization": list(_MATH_OPS),
                "TensorQuantOverrides": overrides or {},
                "QDQDisableWeightAdjustForInt32Bias": overrides is not None,
            },
        )
        model = ir.from_proto(onnx.load(out))
    onnx_graph.pad_integers(model)
    onnx_graph.remove_identities(model)
    onnx_graph.keep_float(model)
    onnx_graph.align_images(model)
    onnx_graph.clean(model)
    return model


def _reader(model: ir.Model, calibration: Samples) -> Any:
    from onnxruntime.quantization import CalibrationDataReader

    read = {_named(value) for value in model.graph.inputs}
    batched = {
        name: torch.split(tensor, _BATCH)
        for name, tensor in calibration.items()
        if name in read and tensor.ndim
    }
    whole = {n: t.numpy() for n, t in calibration.items() if n in read and not t.ndim}

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            batches = zip(*batched.values(), strict=True)
            self.batches = iter(
                [
                    whole | {n: t.contiguous().numpy() for n, t in zip(batched, b, strict=True)}
                    for b in batches
                ]
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    return Reader()


def _constant_sums(model: ir.Model) -> list[str]:
    """Returns the sums and products with constants: 8 bits are too few for a bias."""
    return [
        node.name or ""
        for node in model.graph
        if node.op_type in ("Add", "Mul")
        and any(onnx_graph.constant(value) is not None for value in node.inputs)
    ]


def count_layers(path: Path) -> tuple[int, int]:
    """Returns how many layers ONNX Runtime computes in 8-bit integers, and how many in float.

    Counted in the graph as ONNX Runtime has optimised it: what the file asks for is one thing,
    what gets fused into integer kernels another.
    """
    kinds = [node.op_type for node in optimised(path, "EXTENDED").graph.node]
    integer = sum(kind in onnx_graph.INTEGER_LAYERS for kind in kinds)
    return integer, sum(kind in onnx_graph.FLOAT_LAYERS for kind in kinds)


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
        self.layers = quantized_layers(network)
        onnx_graph.simplify(model)
        self.nodes = onnx_graph.weighted_nodes(
            model,
            {n: m.quantized_weight().detach().cpu().numpy() for n, m in self.layers.items()},
        )
        self.overrides: dict[str, list[dict[str, Any]]] = {}

    def write(self) -> ir.Model:
        """Returns the quantized model.

        Raises:
            ExportError: If the exporter has rewritten a layer's weights.
        """
        lost = [name for name, nodes in self.nodes.items() if not nodes]
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
                exclude=[*self._float_nodes(), *_constant_sums(model)],
            )
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
        return [name for name, layer in self.layers.items() if runs_in_integers(layer)]

    def _set_weights(self) -> None:
        """Hands the integer layers' scales to the quantizer, which then finds their integers."""
        from onnxruntime.quantization import QuantType

        for name in self._integer_layers():
            layer = self.layers[name]
            integers, scales = weight_integers(layer)
            _make_room_for_bias(layer, integers, scales)
            values = integers * scales.reshape(-1, *(1,) * (integers.ndim - 1))
            for node in self.nodes[name]:
                axis = onnx_graph.output_axis(node)
                weight = _named(node.inputs[1])
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
                users.setdefault(node.inputs[0], {})[node] = _input_parameters(self.layers[name])
        for tensor, wanted in users.items():
            widest: tuple[float, int] | None = max(wanted.values(), key=lambda user: user[0])
            if self.shortcuts == "own" and any(
                reader not in wanted and reader.op_type in (*_MATH_OPS, *_MOVE_OPS)
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
                self.overrides[_named(own)] = [
                    {
                        "scale": np.asarray(scale, np.float32),
                        "zero_point": np.asarray(zero, np.uint8),
                        "quant_type": QuantType.QUInt8,
                    }
                ]

    def _store_weight_only(self, model: ir.Model) -> ir.Model:
        """Replaces float weights by integers that are multiplied by their scales when they run."""
        small = {
            name: weight_integers(layer)
            for name, layer in self.layers.items()
            if self.weight_only == "integer"
            and layer.input_quantizer is None
            and has_integers(layer.weight_quantizer)
        }
        small = {n: (i, s) for n, (i, s) in small.items() if fits_int8(i)}
        fits = {n for n, (i, _) in small.items() if i.min() >= -8 and i.max() <= 7}
        if fits:
            model = ir.from_proto(convert_version(ir.to_proto(model), _INT4_OPSET))
        for name, (integers, scales) in small.items():
            kind = ir.DataType.INT4 if name in fits else ir.DataType.INT8
            for old in self.nodes[name]:
                node = model.graph.node(old.name or "")
                axis = onnx_graph.output_axis(node)
                stored = np.ascontiguousarray(integers if axis == 0 else integers.T)
                constants = [
                    onnx_graph.add_constant(model, f"{name}.integers", stored.astype(kind.numpy())),
                    onnx_graph.add_constant(model, f"{name}.scales", scales),
                ]
                decode = ir.node("DequantizeLinear", constants, {"axis": axis})
                node.prepend(decode)
                node.replace_input_with(1, decode.outputs[0])
        onnx_graph.clean(model)
        return model


def _named(value: ir.Value | None) -> str:
    assert value is not None
    assert value.name is not None
    return value.name


def _input_parameters(layer: QuantizedLayer) -> tuple[float, int]:
    """Returns scale and zero point of a layer's input as unsigned 8-bit integers."""
    quantizer = layer.input_quantizer
    if not isinstance(quantizer, UniformQuantizer):
        raise TypeError(f"Expected a uniform input, got {type(quantizer).__name__}.")
    smallest = -128 if quantizer.symmetric else quantizer.quant_min
    return float(_scales(quantizer, 1)[0]), int(quantizer.zero_point) - smallest


def _make_room_for_bias(layer: QuantizedLayer, integers: np.ndarray, scales: np.ndarray) -> None:
    """Widens the scales of channels whose bias would not fit into 32 bits, in place.

    The weights of such a channel add less than a thousandth of their own bias, mostly because all
    of them are 0.
    """
    if layer.bias is None:
        return
    bias = np.abs(layer.bias.detach().cpu().numpy())
    factor = bias / (_LARGEST_BIAS * _input_parameters(layer)[0] * scales.astype(np.float64))
    for channel in np.flatnonzero(factor > 1):
        integers[channel] = np.rint(integers[channel] / factor[channel])
        scales[channel] *= factor[channel]
