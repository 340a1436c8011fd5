"""Networks as ONNX files: written, loaded again, compared with torch on real images, and timed."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc_env import MissingDependencyError
from experiments.files import replace
from experiments.onnx_options import INPUT, OUTPUT, OnnxOptions, finish
from experiments.onnx_program import ExportError as ExportError
from experiments.onnx_program import capture
from learners.masking import masked_layers
from learners.network_intake import take_in
from learners.quantization.structure import bake

BATCH_SIZES = (1, 64)

# Largest allowed difference between the logits of ONNX Runtime and torch, relative to the largest
# logit (or to 1, if that is larger). Both compute in fp32 and sum in different orders: a correct
# export of a ResNet differs by about 2e-5; a wrong batch norm or padding by more than 1e-2.
TOLERANCE = 1e-3
HALF_TOLERANCE = 2e-2
"""In float16, whose numbers have three digits, over some tens of layers."""

_WARM_UP = 3
# Enough rounds for a steady median, but no more than about this many seconds per batch size.
_ROUNDS = 300
_SECONDS_PER_BATCH_SIZE = 5.0
_LEAST_ROUNDS = 11


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


def require_onnx() -> None:
    """Checks that the optional packages are there, before work is done that needs them.

    Raises:
        MissingDependencyError: With the line that installs them.
    """
    missing = [
        name
        for name in ("onnx", "onnxscript", "onnxruntime")
        if importlib.util.find_spec(name) is None
    ]
    if missing:
        raise MissingDependencyError(
            f"Exporting needs {', '.join(missing)}; install with: "
            f'pip install "amc-compress[onnx]", or add --no-export.'
        )


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
        MissingDependencyError: If the ``onnx`` extra is not installed.
        ExportError: If the network cannot be exported, or the file computes something else.
        UntraceableModelError: If the network is in no form that can be taken in.
    """
    require_onnx()
    model = take_in(model, "cpu").network
    options = options or OnnxOptions()
    if tolerance is None:
        tolerance = HALF_TOLERANCE if options.half else TOLERANCE
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.onnx")
    try:
        plain = bake(model) if masked_layers(model) else model
        write_unchecked(plain, example_input, temporary, options)
        finish(temporary, options)
        seen = example_input if images is None else images
        result = _compare(model, seen, temporary, tolerance, options)
        replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()
    return ExportResult(path, *result)


class _Half(nn.Module):
    """A network in float16 between float32 inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half()

    def forward(self, images: Tensor) -> Tensor:
        result: Tensor = self.network(images.half())
        return result.float()


def write_unchecked(
    model: nn.Module, example_input: Tensor, path: Path, options: OnnxOptions | None = None
) -> None:
    """Writes a network as it is, in ``eval`` mode, without comparing the file with torch.

    Args:
        model: The network.
        example_input: Only its shape matters.
        path: The file, for :func:`experiments.onnx_options.finish`.
        options: What has to be settled here: batch, operators, float16.

    Raises:
        ExportError: If the network cannot be exported.
    """
    options = options or OnnxOptions()
    network = model.to("cpu")
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
            torch.onnx.export(
                program,
                (),
                str(path),
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=options.opset,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            cause = error.__cause__ or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
            raise ExportError(
                f"This network cannot be exported to ONNX ({reason}); add --no-export to go "
                f"without."
            ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences the exporter: it prints its progress and warns about its own internals."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def open_session(path: Path) -> Any:
    """Opens an ONNX file in ONNX Runtime on one thread.

    Raises:
        ExportError: If ONNX Runtime refuses the file.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no base class
        if type(error).__module__.split(".")[0] != "onnxruntime":
            raise
        raise ExportError(
            f"ONNX Runtime cannot read {path} ({str(error).splitlines()[0]}); run `amc export` "
            f"again."
        ) from error


def run_session(session: Any, images: Tensor) -> np.ndarray:
    """Returns the logits of ONNX Runtime, shape (N, n_classes)."""
    name = session.get_inputs()[0].name
    logits: np.ndarray = session.run(None, {name: images.contiguous().numpy()})[0]
    return logits


def _compare(
    model: nn.Module, images: Tensor, path: Path, tolerance: float, options: OnnxOptions
) -> tuple[float, float, int]:
    session = open_session(path)
    differences, agreements, largest = [], [], 1.0
    for batch in batches_of(images, options.batch):
        taken, fed = options.feed(batch)
        with torch.no_grad():
            expected = model(taken.float()).float().numpy()
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
    agreement = float(np.mean(np.concatenate(agreements)))
    return difference, agreement, len(images)


def batches_of(images: Tensor, size: int | None) -> Iterator[Tensor]:
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


def time_onnx(
    paths: Mapping[str, Path],
    image_shape: Sequence[int],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = _SECONDS_PER_BATCH_SIZE,
) -> dict[str, dict[str, float]]:
    """Times several ONNX files against each other, on one thread.

    The files take turns, so that whatever else the machine does hits all of them alike; the
    median ignores the outliers that remain.

    Args:
        paths: Name -> file.
        image_shape: ``(C, H, W)``.
        batch_sizes: Images per call.
        seconds: About how long to measure per batch size.

    Returns:
        Name -> batch size (as text) -> median milliseconds per call.
    """
    sessions = {name: open_session(path) for name, path in paths.items()}
    results: dict[str, dict[str, float]] = {name: {} for name in paths}
    generator = torch.Generator().manual_seed(0)
    for size in batch_sizes:
        images = torch.randn(size, *image_shape, generator=generator)
        calls = {
            name: partial(session.run, None, _feed(session, images))
            for name, session in sessions.items()
        }
        for name, milliseconds in interleaved(calls, seconds).items():
            results[name][str(size)] = round(milliseconds, 4)
    return results


def _feed(session: Any, images: Tensor) -> dict[str, np.ndarray]:
    """Returns images in the type that a file takes."""
    source = session.get_inputs()[0]
    if source.type == "tensor(uint8)":
        images = (64.0 * images + 128.0).clamp(0.0, 255.0).to(torch.uint8)
    return {source.name: images.numpy()}


def interleaved(calls: Mapping[str, Callable[[], object]], seconds: float) -> dict[str, float]:
    """Returns the median milliseconds of each call; they take turns for so many seconds."""
    for call in calls.values():
        for _ in range(_WARM_UP):
            call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    for round_index in range(_ROUNDS):
        if round_index >= _LEAST_ROUNDS and time.perf_counter() > end:
            break
        # Whoever runs first changes from round to round: what a time slice ends with is not
        # always the same network.
        order = list(calls.items())
        for name, call in order if round_index % 2 else reversed(order):
            start = time.perf_counter()
            call()
            times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: statistics.median(samples) for name, samples in times.items()}
