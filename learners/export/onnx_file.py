"""Networks as ONNX files: written, loaded again, and compared with torch on real inputs."""

from __future__ import annotations

import contextlib
import copy
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from amc_compress.learners.export.interface import WRAPPED, Flat, Interface, on_cpu
from amc_compress.learners.export.onnx_compare import Comparison
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.export.onnx_program import ExportError as ExportError
from amc_compress.learners.export.onnx_program import capture
from amc_compress.learners.export.part import part_of
from amc_compress.learners.export.recurrent import any_number_of_steps
from amc_compress.learners.export.runtime import quiet
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.tasks.task import Task
from amc_env.files import replace
from amc_env.validation.sentences import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

# Largest allowed difference between the outputs of ONNX Runtime and torch, relative to the largest
# number of an output (or to 1, if that is larger). Both compute in fp32 and sum in different
# orders: a correct export of a ResNet differs by about 2e-5; a wrong batch norm or padding by more
# than 1e-2.
TOLERANCE = 1e-3
HALF_TOLERANCE = 2e-2
"""In float16, whose numbers have three digits, over some tens of layers."""


@dataclass(frozen=True)
class ExportResult:
    """A checked ONNX file.

    Args:
        path: The file.
        max_difference: Largest difference of a number in the outputs between ONNX Runtime and
            torch.
        agreement: How alike both answer, in [0, 1], as the task measures it; for classification
            the share of the images for which both choose the same class.
        n_images: How many samples were compared.
    """

    path: Path
    max_difference: float
    agreement: float
    n_images: int


def export_onnx(
    model: nn.Module,
    example_input: object,
    path: str | Path,
    *,
    images: object = None,
    tolerance: float | None = None,
    options: OnnxOptions | None = None,
    task: str | Task = "agreement",
    part: str | None = None,
) -> ExportResult:
    """Writes a network as ONNX, by default with a free batch axis, and proves the file.

    The file's inputs are named after the network's arguments and the keys in them, its outputs
    after the keys of what it returns; one tensor of images is ``images``, and its logits are
    ``logits``. Numbers, texts and everything else that is no tensor become part of the file.

    Args:
        model: The network in any form; not changed. A copy is exported, in eval mode, in fp32, from
            the CPU. Masked layers are written as plain ones with zeros in their weights.
        example_input: What the network is called with, samples first: images (N, C, H, W) or any
            other tensor, a tuple of arguments, a dictionary of keyword arguments, or a ``Call``.
        path: The file to write, atomically.
        images: Real inputs of the same kind, on which both must agree; ``example_input`` if not
            given.
        tolerance: Largest allowed difference relative to the largest number of an output (or to
            1); :data:`TOLERANCE`, in float16 :data:`HALF_TOLERANCE`, if not given.
        options: Batch, further free axes, types, names and metadata of the file.
        task: What the network is for, which says how alike two answers are. ``agreement`` knows
            all kinds: logits agree by their highest, other numbers by their likeness.
        part: The submodule to write, where code of the whole network that is more than tensors
            stays outside of the file, as what a detector does with its boxes; ``task`` is then the
            part's.

    Raises:
        ExportError: If the network cannot be exported, or the file computes something else.
        UntraceableModelError: If the network is in no form that can be taken in.
    """
    network = take_in(model, "cpu").network
    options = options or OnnxOptions()
    if tolerance is None:
        tolerance = HALF_TOLERANCE if options.half else TOLERANCE
    example = on_cpu(network, example_input)
    seen = example if images is None else on_cpu(network, images)
    if part is not None:
        _, example = part_of(network, part, example)
        network, seen = part_of(network, part, seen)
    plain = finalise(network, quantized=True) if masked_layers(network) else network
    interface = Interface(plain, example, options.batch)
    exported = float_model(plain, interface, options)
    check = Comparison(network, interface, seen, options, tolerance, task=task)
    return write_compared(exported, check, Path(path))


def float_model(network: nn.Module, interface: Interface, options: OnnxOptions) -> ir.Model:
    """Returns the graph of a network, in ``eval`` mode, not yet compared with torch.

    Args:
        network: On the CPU.
        interface: Of the network.
        options: What has to be settled here: batch, further free axes, operators, float16.

    Raises:
        ExportError: If the network cannot be exported.
    """
    interface.check_options(options)
    flat = not interface.is_plain or options.half
    asked = network
    if flat:
        inner = copy.deepcopy(network).half() if options.half else network
        asked = Flat(inner, interface.example, half=options.half).eval()
    with quiet(), any_number_of_steps():
        program = _captured(asked, interface, options)
        try:
            exported = torch.onnx.export(
                program,
                (),
                input_names=None if flat else list(interface.inputs),
                output_names=None if flat else list(interface.outputs),
                opset_version=options.opset,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = first_line(error.__cause__ or error)
            raise ExportError(
                f"This network cannot be exported to ONNX ({reason}); add --no-export to go "
                f"without."
            ) from error
    assert exported is not None
    model: ir.Model = exported.model
    if flat:
        _without_wrapper(model, interface)
    return model


def _captured(
    network: nn.Module, interface: Interface, options: OnnxOptions
) -> torch.export.ExportedProgram:
    """Returns the graph with as many free axes as the network allows."""
    if interface.is_free:
        # Two samples, because the exporter takes an axis of length 1 for a constant.
        tensors = interface.tensors(2)
        axes = interface.free_axes(tensors, options)
        try:
            return capture(network, tensors, axes)
        except ExportError:
            only_batch = [{axis: name for axis, name in free.items() if axis == 0} for free in axes]
            if only_batch != axes:
                with contextlib.suppress(ExportError):
                    return capture(network, tensors, only_batch)
            if options.batch is None:
                raise
    return capture(network, interface.tensors(options.batch), None)


def _without_wrapper(model: ir.Model, interface: Interface) -> None:
    """Gives tensors the names that they have without :class:`Flat`."""
    # Here, because importing ONNX takes a third of a second, and a run may end without a file.
    from amc_compress.learners.export.onnx_finish import rename

    graph = model.graph
    constants = [v for v in graph.initializers.values() if (v.name or "").startswith(WRAPPED)]
    rename(constants, [(value.name or "").removeprefix(WRAPPED) for value in constants], model)
    rename([*graph.inputs, *graph.outputs], [*interface.inputs, *interface.outputs], model)


def write_compared(model: ir.Model, comparison: Comparison, path: Path) -> ExportResult:
    """Writes a model, atomically, once ONNX Runtime has shown what it computes.

    Args:
        model: As exported; gets its outside here.
        comparison: With what it has to compute.
        path: The file.

    Raises:
        ExportError: If the file computes something else.
    """
    # Here, because importing ONNX takes a third of a second, and a run may end without a file.
    from amc_compress.learners.export.onnx_finish import write

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.onnx")
    try:
        write(model, temporary, comparison.options)
        result = comparison.run(temporary)
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return ExportResult(path, *result)
