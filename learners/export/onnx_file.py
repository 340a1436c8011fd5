"""Networks as ONNX files: written, loaded again, and compared with torch on real images."""

from __future__ import annotations

import contextlib
import copy
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.export.onnx_options import INPUT, OUTPUT, OnnxOptions
from amc_compress.learners.export.onnx_program import ExportError as ExportError
from amc_compress.learners.export.onnx_program import capture
from amc_compress.learners.export.runtime import open_session, quiet, run_session
from amc_compress.learners.layers.finalise import finalise
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.networks.intake import take_in
from amc_env.files import replace
from amc_env.validation.sentences import first_line

if TYPE_CHECKING:
    import onnx_ir as ir

# Largest allowed difference between the logits of ONNX Runtime and torch, relative to the largest
# logit (or to 1, if that is larger). Both compute in fp32 and sum in different orders: a correct
# export of a ResNet differs by about 2e-5; a wrong batch norm or padding by more than 1e-2.
TOLERANCE = 1e-3
HALF_TOLERANCE = 2e-2
"""In float16, whose numbers have three digits, over some tens of layers."""


@dataclass(frozen=True)
class ExportResult:
    """A checked ONNX file.

    Args:
        path: The file.
        max_difference: Largest difference of a logit between ONNX Runtime and torch.
        agreement: Share of the images for which both choose the same class.
        n_images: How many images were compared.
    """

    path: Path
    max_difference: float
    agreement: float
    n_images: int


def export_onnx(
    model: nn.Module,
    example_input: Tensor,
    path: str | Path,
    *,
    images: Tensor | None = None,
    tolerance: float | None = None,
    options: OnnxOptions | None = None,
) -> ExportResult:
    """Writes a network as ONNX, by default with a free batch axis, and proves the file.

    Args:
        model: The network in any form; not changed. A copy is exported, in eval mode, in fp32, from
            the CPU. Masked layers are written as plain ones with zeros in their weights.
        example_input: One batch of inputs, shape (N, C, H, W); only its shape matters.
        path: The file to write, atomically.
        images: Real inputs, shape (N, C, H, W), on which both must agree; ``example_input``
            if not given.
        tolerance: Largest allowed difference relative to the largest logit (or to 1);
            :data:`TOLERANCE`, in float16 :data:`HALF_TOLERANCE`, if not given.
        options: Batch, types, names and metadata of the file.

    Raises:
        ExportError: If the network cannot be exported, or the file computes something else.
        UntraceableModelError: If the network is in no form that can be taken in.
    """
    network = take_in(model, "cpu").network
    options = options or OnnxOptions()
    if tolerance is None:
        tolerance = HALF_TOLERANCE if options.half else TOLERANCE
    plain = finalise(network, quantized=True) if masked_layers(network) else network
    exported = float_model(plain, example_input, options)
    seen = example_input if images is None else images
    return write_compared(exported, network, seen, Path(path), options, tolerance)


class _Half(nn.Module):
    """A network in float16 between float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.network(images.half())
        return result.float()


def float_model(network: nn.Module, example_input: Tensor, options: OnnxOptions) -> ir.Model:
    """Returns the graph of a network, in ``eval`` mode, not yet compared with torch.

    Args:
        network: On the CPU.
        example_input: Only its shape matters.
        options: What has to be settled here: batch, operators, float16.

    Raises:
        ExportError: If the network cannot be exported.
    """
    if options.half:
        network = _Half(network).eval()
    # Two images, because the exporter takes an axis of length 1 for a constant.
    shape = example_input.shape[1:]
    with quiet():
        try:
            program = capture(network, torch.zeros(2, *shape), free=True)
        except ExportError:
            if options.batch is None:
                raise
            program = capture(network, torch.zeros(options.batch, *shape), free=False)
        try:
            exported = torch.onnx.export(
                program,
                (),
                input_names=[INPUT],
                output_names=[OUTPUT],
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
    return model


def write_compared(
    model: ir.Model,
    network: nn.Module,
    images: Tensor,
    path: Path,
    options: OnnxOptions,
    tolerance: float = math.inf,
) -> ExportResult:
    """Writes a model, atomically, once ONNX Runtime has shown what it computes.

    Args:
        model: As exported; gets its outside here.
        network: What it has to compute, on the CPU.
        images: Where both are compared, shape (N, C, H, W).
        path: The file.
        options: Of the file.
        tolerance: Largest allowed difference relative to the largest logit (or to 1).

    Raises:
        ExportError: If the file computes something else.
    """
    # Here, because importing ONNX takes a third of a second, and a run may end without a file.
    from amc_compress.learners.export.onnx_finish import write

    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.onnx")
    try:
        write(model, temporary, options)
        result = _compare(network, images, temporary, tolerance, options)
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return ExportResult(path, *result, len(images))


def _compare(
    network: nn.Module, images: Tensor, path: Path, tolerance: float, options: OnnxOptions
) -> tuple[float, float]:
    """Returns the largest difference of a logit, and the share of images on which both agree."""
    session = open_session(path)
    differences, agreements, largest = [], [], 1.0
    for batch in _batches(images.float().cpu(), options.batch):
        taken, fed = options.feed(batch)
        with torch.no_grad():
            expected = network(taken).float().numpy()
        got = run_session(session, fed)
        if got.shape != expected.shape:
            raise ExportError(
                f"The exported network gives outputs of shape {got.shape}, torch {expected.shape}."
            )
        differences.append(float(np.max(np.abs(got - expected))))
        agreements.append(got.argmax(1) == expected.argmax(1))
        largest = max(largest, float(np.max(np.abs(expected))))
    difference = max(differences)
    if not difference <= tolerance * largest:
        raise ExportError(
            f"The exported network differs from torch by {difference:.2g} (allowed "
            f"{tolerance:g} of the largest logit, {largest:.3g}); the file was not kept."
        )
    return difference, float(np.mean(np.concatenate(agreements)))


def _batches(images: Tensor, size: int | None) -> Iterator[Tensor]:
    """Yields images in batches of several sizes, or of the only one that a file takes.

    Args:
        images: Shape (N, ...).
        size: Images per call; ``None`` for any number.
    """
    if size is not None:
        # The last images again, so that the last batch is as large as all others.
        index = torch.arange(-(-len(images) // size) * size) % len(images)
        yield from torch.split(images[index], size)
        return
    yield images[:1]  # several sizes, because the batch axis is promised to be free
    if len(images) > 1:
        yield from torch.split(images[1:], 64)
