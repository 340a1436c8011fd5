"""ONNX Runtime: sessions, and the time that they take."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc_compress.learners.export.onnx_program import ExportError as ExportError

BATCH_SIZES = (1, 64)


_WARM_UP = 3


# Enough rounds for a steady median, but no more than about this many seconds per batch size.
_ROUNDS = 300


_SECONDS_PER_BATCH_SIZE = 5.0


_LEAST_ROUNDS = 11


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
        ExportError: If ONNX Runtime rejects the file.
    """
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
        # The first to run changes from round to round: what a time slice ends with is not
        # always the same network.
        order = list(calls.items())
        for name, call in order if round_index % 2 else reversed(order):
            start = time.perf_counter()
            call()
            times[name].append(1000.0 * (time.perf_counter() - start))
    return {name: statistics.median(samples) for name, samples in times.items()}
