"""Networks as ONNX files: written, loaded again, compared with torch on real images, and timed."""

from __future__ import annotations

import contextlib
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

from amc_env import CompressionError, MissingDependencyError
from experiments.files import replace
from learners.masking import masked_layers
from learners.quantization.structure import bake

BATCH_SIZES = (1, 64)

# Largest allowed difference between the logits of ONNX Runtime and torch, relative to the largest
# logit (or to 1, if that is larger). Both compute in fp32 and sum in different orders: a correct
# export of a ResNet differs by about 2e-5; a wrong batch norm or padding by more than 1e-2.
TOLERANCE = 1e-3

_WARM_UP = 3
# Enough rounds for a steady median, but no more than about this many seconds per batch size.
_ROUNDS = 300
_SECONDS_PER_BATCH_SIZE = 5.0
_LEAST_ROUNDS = 11


class ExportError(CompressionError):
    """The exported file does not compute what the network computes."""


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
    tolerance: float = TOLERANCE,
) -> ExportResult:
    """Writes a network as ONNX with a dynamic batch axis, and proves the file.

    Args:
        model: The network; exported in eval mode, in fp32, from the CPU. Masked layers are written
            as plain ones with zeros in their weights.
        example_input: One batch of inputs, shape (N, C, H, W); only its shape matters.
        path: The file to write, atomically.
        images: Real inputs, shape (N, C, H, W), on which both must agree; ``example_input``
            if not given.
        tolerance: Largest allowed difference relative to the largest logit (or to 1).

    Raises:
        MissingDependencyError: If the ``onnx`` extra is not installed.
        ExportError: If the network cannot be exported, or the file computes something else.
    """
    require_onnx()
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp.onnx")
    was_training = model.training
    model.eval()
    try:
        plain = bake(model) if masked_layers(model) else model
        write_unchecked(plain, example_input, temporary)
        result = _compare(model, example_input if images is None else images, temporary, tolerance)
        replace(temporary, path)
    finally:
        model.train(was_training)
        with contextlib.suppress(OSError):
            temporary.unlink()
    return ExportResult(path, *result)


def write_unchecked(model: nn.Module, example_input: Tensor, path: Path) -> None:
    """Writes a network as it is, in ``eval`` mode, without comparing the file with torch.

    Raises:
        ExportError: If the network cannot be exported.
    """
    # Two images, because the exporter takes an axis of length 1 for a constant.
    shape = example_input.shape[1:]
    example = torch.zeros(2, *shape, dtype=torch.float32)
    batch = torch.export.Dim("batch", min=1)
    try:
        with quiet():
            torch.onnx.export(
                model.to("cpu"),
                (example,),
                str(path),
                input_names=["images"],
                output_names=["logits"],
                dynamic_shapes=({0: batch},),
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        cause = error.__cause__ or error
        reason = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ExportError(
            f"This network cannot be exported to ONNX ({reason}); add --no-export to go without."
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
    model: nn.Module, images: Tensor, path: Path, tolerance: float
) -> tuple[float, float, int]:
    session = open_session(path)
    differences, agreements, largest = [], [], 1.0
    # Batches of several sizes, because the batch axis is promised to be free.
    for batch in _uneven_batches(images):
        with torch.no_grad():
            expected = model(batch).float().numpy()
        got = run_session(session, batch)
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


def _uneven_batches(images: Tensor) -> Iterator[Tensor]:
    yield images[:1]
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
        images = torch.randn(size, *image_shape, generator=generator).numpy()
        calls = {
            n: partial(s.run, None, {s.get_inputs()[0].name: images}) for n, s in sessions.items()
        }
        for name, milliseconds in interleaved(calls, seconds).items():
            results[name][str(size)] = round(milliseconds, 4)
    return results


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
