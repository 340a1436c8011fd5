"""ONNX Runtime's quantizer: a float model turned into one of 8-bit integers."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import onnx
import onnx_ir as ir
import torch
from torch import Tensor

from amc_compress.learners.export import onnx_graph
from amc_compress.learners.export.runtime import explained, optimised

CALIBRATION_METHODS = ("minmax", "percentile", "entropy")
"""How ranges are found that a network does not have itself."""

# Operators that have an 8-bit kernel, and those that only move numbers around. Batch norms and
# softmax are left in float: they are rare once norms are folded, and 8 bits harm them.
_MATH_OPS = ("Conv", "Gemm", "MatMul", "Add", "Mul", "Concat", "GlobalAveragePool", "AveragePool")
_MOVE_OPS = ("MaxPool", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Pad")
QUANTIZED_OPS = (*_MATH_OPS, *_MOVE_OPS)
"""What reads 8 bits."""

Samples: TypeAlias = Mapping[str, Tensor]
"""Input -> tensor with the samples first, on the CPU, in the type that the input has."""

_BATCH = 32


def quantize_float(model: ir.Model, calibration: Samples, method: str) -> ir.Model:
    """Quantizes a float model to 8 bits: signed weights per channel, unsigned activations."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        given = Path(folder) / "given.onnx"
        onnx.save(ir.to_proto(model), given)
        try:
            # Folds what is left of norms. In that folder, where it leaves what it fails on.
            with contextlib.chdir(folder):
                quant_pre_process(str(given), str(prepared))
        except Exception as error:
            if type(error) is not Exception:
                raise
            # Its own inference of shapes does not know all operators, and says so by this class.
            quant_pre_process(str(given), str(prepared), skip_symbolic_shape=True)
        model = ir.from_proto(onnx.load(prepared))
    onnx_graph.simplify(model)
    return run_quantizer(model, calibration, method, exclude=constant_sums(model))


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

    with tempfile.TemporaryDirectory() as folder, explained(calibration):
        out = Path(folder) / "int8.onnx"
        quantize_static(
            ir.to_proto(model),
            str(out),
            _reader(model, calibration),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTIZED_OPS),
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

    read = {name_of(value) for value in model.graph.inputs}
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


def constant_sums(model: ir.Model) -> list[str]:
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
    float_kinds = onnx_graph.FLOAT_LAYERS | onnx_graph.RECURRENT_LAYERS
    return integer, sum(kind in float_kinds for kind in kinds)


def name_of(value: ir.Value | None) -> str:
    """Returns the name of a value that has one."""
    assert value is not None
    assert value.name is not None
    return value.name
