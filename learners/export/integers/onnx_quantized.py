"""Quantized networks as ONNX files that ONNX Runtime executes in 8-bit integers.

Two ways lead there. :func:`post_training_int8` takes a float network and leaves all choices to
ONNX Runtime's quantizer. :func:`export_quantized` takes a network of the quantization learners and
writes *its* integers and *its* input scales, so that the file predicts what the network predicts.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_int8 import SHORTCUTS, IntegerWriter
from amc_compress.learners.export.integers.onnx_integers import (
    fits_int8,
    runs_in_integers,
    weight_integers,
)
from amc_compress.learners.export.integers.onnx_quantizer import (
    CALIBRATION_METHODS,
    Samples,
    count_layers,
    quantize_float,
)
from amc_compress.learners.export.interface import Interface, on_cpu
from amc_compress.learners.export.onnx_compare import Comparison
from amc_compress.learners.export.onnx_file import ExportResult, float_model, write_compared
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.runtime import open_session, quiet, run_session
from amc_compress.learners.layers.finalise import plain_weights
from amc_compress.learners.layers.quantized import QuantizedWeight, quantized_layers
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.tasks.inputs import Inputs, count, structure, tensors_of, to_inputs
from amc_compress.learners.tasks.task import Task
from amc_env import CompressionError
from amc_env.errors import InputDataError
from amc_env.validation.checks import check_known

WEIGHT_ONLY = ("integer", "float")
"""How the weights of layers with float inputs are stored."""


class UnsupportedPrecisionError(CompressionError):
    """No runtime executes a network of these precisions."""


@dataclass(frozen=True)
class QuantizedExport(ExportResult):
    """A checked ONNX file of a quantized network.

    Args:
        n_int8_layers: Layers with weights that ONNX Runtime computes in 8-bit integers.
        n_float_layers: Layers with weights that it computes in float32.
        bytes: Size of the file.
    """

    n_int8_layers: int
    n_float_layers: int
    bytes: int


def post_training_int8(
    model: nn.Module,
    example_input: object,
    path: str | Path,
    *,
    calibration: object,
    images: object = None,
    method: str = "minmax",
    options: OnnxOptions | None = None,
    task: str | Task = "agreement",
    part: str | None = None,
) -> QuantizedExport:
    """Quantizes a float network to 8 bits by ONNX Runtime's quantizer, without training.

    Weights are signed, symmetric, one scale per output channel; activations unsigned, one range
    per tensor. Signed activations would be slower than float on x86 processors.

    Args:
        model: Any float network, a pruned one as well, in any form; a copy is exported, in eval
            mode, in fp32, from the CPU.
        example_input: What the network is called with, see ``export_onnx``.
        path: The file to write, atomically.
        calibration: Inputs to take the ranges from, of the same kind.
        images: Inputs on which to compare with torch; those of the calibration if not given.
        method: ``"minmax"``, ``"percentile"`` (99.999%) or ``"entropy"``; the last two take
            several times as long and much memory.
        options: Batch, names and metadata of the file.
        task: Says how alike both answer, see ``export_onnx``.
        part: The submodule to write, see ``export_onnx``.

    Raises:
        ExportError: If the network cannot be exported.
        UnsupportedPrecisionError: If the network is a quantized one already.
    """
    model = take_in(model, "cpu").network
    if quantized_layers(model):
        raise UnsupportedPrecisionError(
            "post_training_int8 takes a float network, this one is quantized already; use "
            "export_quantized."
        )
    check_known("method", method, CALIBRATION_METHODS)

    def quantize(exported: ir.Model, samples: Samples) -> ir.Model:
        return quantize_float(exported, samples, method)

    inputs = _Inputs(model, example_input, calibration, images)
    model = inputs.inside(model, part)
    return _export(model, inputs, path, quantize, options, task)


def export_quantized(
    network: nn.Module,
    example_input: object,
    path: str | Path,
    *,
    calibration: object,
    images: object = None,
    method: str = "minmax",
    weight_only: str = "integer",
    shortcuts: str = "shared",
    options: OnnxOptions | None = None,
    task: str | Task = "agreement",
    part: str | None = None,
) -> QuantizedExport:
    """Writes a quantized network as ONNX with exactly its integers, scales and zero points.

    Layers with 8-bit inputs and uniform weights of 2 to 8 bits per tensor or channel run in
    integers; weights of fewer than 8 bits are 8-bit numbers in their small range. Tensors
    between the layers that integer execution needs in 8 bits as well (sums, pooled maps) get
    ranges from the calibration inputs. Codebook weights and weights in buckets have no integer
    arithmetic and are written as the float32 numbers that they stand for.

    Args:
        network: A network with quantized layers; exported in eval mode, from the CPU.
        example_input: What the network is called with, see ``export_onnx``.
        path: The file to write, atomically.
        calibration: Inputs to take the missing ranges from, of the same kind.
        images: Inputs on which to compare with torch; those of the calibration if not given.
        method: How the missing ranges are found, as for :func:`post_training_int8`.
        weight_only: What becomes of the weights of layers whose inputs are float:
            ``"integer"`` stores them as 4-bit (up to 4 bits) or 8-bit integers, a small file
            that is slower than float32; ``"float"`` as float32 numbers.
        shortcuts: Where a layer's input is read by a sum as well: ``"shared"`` gives the sum the
            numbers that the layer reads, cut off at the layer's range; ``"own"`` a range of its
            own and the layer a second rounding, nearer to the network if ranges cut off much,
            and about a fifth slower.
        options: Batch, names and metadata of the file.
        task: Says how alike both answer, see ``export_onnx``.
        part: The submodule to write, see ``export_onnx``.

    Raises:
        UnsupportedPrecisionError: If nothing executes the network's precisions.
        ExportError: If the network cannot be exported.
    """
    network = take_in(network, "cpu").network
    inputs = _Inputs(network, example_input, calibration, images)
    network = inputs.inside(network, part)
    check_executable(network)
    check_known("method", method, CALIBRATION_METHODS)
    check_known("weight_only", weight_only, WEIGHT_ONLY)
    check_known("shortcuts", shortcuts, SHORTCUTS)

    def quantize(exported: ir.Model, samples: Samples) -> ir.Model:
        ways = {"method": method, "weight_only": weight_only, "shortcuts": shortcuts}
        return IntegerWriter(network, exported, samples, **ways).write()

    return _export(network, inputs, path, quantize, options, task)


def check_executable(network: nn.Module) -> None:
    """Checks that ONNX Runtime executes a network's precisions.

    Raises:
        UnsupportedPrecisionError: Naming the layers that nothing executes, and the packed file
            that stores them instead.
    """
    layers = quantized_layers(network)
    if not layers:
        raise UnsupportedPrecisionError(
            "This network has no quantized layers; use post_training_int8."
        )
    by_bits: dict[int, list[str]] = {}
    mixed = []
    for name, layer in layers.items():
        inputs = layer.input_quantizer
        if inputs is not None and not (
            isinstance(inputs, UniformQuantizer)
            and inputs.bits == 8
            and inputs.granularity == "tensor"
        ):
            by_bits.setdefault(inputs.bits, []).append(name)
        elif runs_in_integers(layer) and not fits_int8(
            weight_integers(QuantizedWeight(layer, "weight"))[0]
        ):
            mixed.append(name)
    problems = [
        f"{bits}-bit activations ({', '.join(names)})" for bits, names in sorted(by_bits.items())
    ]
    if mixed:
        problems.append(f"8-bit weights with zero points outside int8 ({', '.join(mixed)})")
    if problems:
        raise UnsupportedPrecisionError(
            f"No runtime executes {'; '.join(problems)}: activations must have 8 bits (or 16, "
            f"which means float) and weights must be symmetric or have fewer bits. Store the "
            f"network with amc_compress.learners.packing.save_packed instead, or quantize it anew "
            f"with activation_bits=8."
        )


def onnx_accuracy(path: str | Path, loader: Any) -> float:
    """Returns the share of images that an ONNX file classifies correctly.

    Args:
        path: The file.
        loader: Iterable of ``(images, labels)``.
    """
    session = open_session(Path(path))
    right = total = 0
    for images, labels in loader:
        right += int((run_session(session, images.float()).argmax(1) == labels.numpy()).sum())
        total += len(labels)
    if not total:
        raise InputDataError("Expected at least one image, got none.")
    return right / total


class _Inputs:
    """The example, and the inputs for the ranges and for the comparison, checked against it.

    Raises:
        InputDataError: If they are of other kinds or shapes, or hold NaN.
    """

    def __init__(
        self, network: nn.Module, example: object, calibration: object, compared: object
    ) -> None:
        self.example = on_cpu(network, example)
        self.calibration = to_inputs(calibration)
        _check_inputs("calibration", self.calibration, self.example)
        self.compared = self.calibration if compared is None else to_inputs(compared)
        _check_inputs("images", self.compared, self.example)
        self.calibration = on_cpu(network, self.calibration)
        self.compared = on_cpu(network, self.compared)

    def inside(self, network: nn.Module, part: str | None) -> nn.Module:
        """Returns the part of a network, and makes these the inputs of the part."""
        if part is None:
            return network
        found, self.example = part_of(network, part, self.example)
        self.calibration = part_of(network, part, self.calibration)[1]
        self.compared = part_of(network, part, self.compared)[1]
        return found


def _export(
    network: nn.Module,
    inputs: _Inputs,
    path: str | Path,
    quantize: Callable[[ir.Model, Samples], ir.Model],
    options: OnnxOptions | None,
    task: str | Task,
) -> QuantizedExport:
    """Exports in float, lets that be quantized, and compares the result with the network."""
    options = options or OnnxOptions()
    if options.half:
        raise UnsupportedPrecisionError(
            "Expected a float network for float16, got one that is written in 8-bit integers; "
            "leave --half out."
        )
    # Calibration takes batches of its own sizes: the batch is fixed at the end.
    free = dataclasses.replace(options, batch=None)
    plain = plain_weights(network)
    interface = Interface(plain, inputs.example)
    exported = float_model(plain, interface, free)
    with quiet():
        model = quantize(exported, interface.named(inputs.calibration))
    comparison = Comparison(network, interface, inputs.compared, options, task=task)
    result = write_compared(model, comparison, Path(path))
    n_int8, n_float = count_layers(result.path)
    size = result.path.stat().st_size
    return QuantizedExport(**vars(result), n_int8_layers=n_int8, n_float_layers=n_float, bytes=size)


def _check_inputs(name: str, inputs: Inputs, example: Inputs) -> None:
    if isinstance(example, Tensor) and isinstance(inputs, Tensor):
        fits = bool(len(inputs)) and inputs.shape[1:] == example.shape[1:]
    else:
        fits = structure(inputs) == structure(example) and count(inputs) > 0
    if not fits:
        expected = ", ".join(
            f"({', '.join(['N', *map(str, tensor.shape[1:])])})" for tensor in tensors_of(example)
        )
        got = ", ".join(str(tuple(tensor.shape)) for tensor in tensors_of(inputs))
        raise InputDataError(f"Expected {name} of shape {expected}, got {got or 'no tensors'}.")
    floats = [t for t in tensors_of(inputs) if t.is_floating_point()]
    if not all(bool(tensor.isfinite().all()) for tensor in floats):
        raise InputDataError(f"Expected finite {name}, got NaN or infinite numbers.")
