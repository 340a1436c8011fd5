"""ONNX Runtime: sessions, and the time that they take."""

from __future__ import annotations

import contextlib
import io
import logging
import statistics
import tempfile
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
from amc_env.validation.sentences import first_line

BATCH_SIZES = (1, 64)

_WARM_UP = 3
# Enough rounds for a steady quantile, but no more than about this many seconds per batch size.
_ROUNDS = 300
_SECONDS_PER_BATCH_SIZE = 5.0
_LEAST_ROUNDS = 7


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences exporter and quantizer: they print, and warn about their own internals."""
    loggers = (logging.root, logging.getLogger("torch.onnx"))
    levels = [logger.level for logger in loggers]
    handlers = logging.root.handlers[:]  # the quantizer's first advice would add one
    for logger in loggers:
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
        logging.root.handlers[:] = handlers
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def open_session(model: Path | Any, **settings: Any) -> Any:
    """Opens a model in ONNX Runtime on one thread.

    Args:
        model: A file, or an ``onnx.ModelProto``.
        **settings: More attributes of ``onnxruntime.SessionOptions``.

    Raises:
        ExportError: If ONNX Runtime cannot read it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.log_severity_level = 3  # errors only
    for key, value in settings.items():
        setattr(options, key, value)
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        if not _is_runtimes(error):
            raise
        name = model if isinstance(model, Path) else "the exported network"
        raise ExportError(
            f"ONNX Runtime cannot read {name} ({str(error).splitlines()[0]}); run `amc export` "
            f"again."
        ) from error


def optimised(model: Path | Any, level: str) -> Any:
    """Returns a model as ONNX Runtime rewrites it before it runs, an ``onnx.ModelProto``.

    Args:
        model: A file, or an ``onnx.ModelProto``.
        level: ``"BASIC"``: constants folded; ``"EXTENDED"``: nodes fused too; ``"ALL"``: laid out
            for this very processor, and valid on no other.
    """
    import onnx
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "optimised.onnx")
        levels = onnxruntime.GraphOptimizationLevel
        open_session(
            model,
            graph_optimization_level=getattr(levels, f"ORT_ENABLE_{level}"),
            optimized_model_filepath=path,
        )
        return onnx.load(path)


def run_session(session: Any, images: Tensor) -> np.ndarray:
    """Returns the first output for a file with one input, for images the logits (N, n_classes)."""
    name = session.get_inputs()[0].name
    logits: np.ndarray = _run(session, {name: images.contiguous().numpy()})[0]
    return logits


def run_named(session: Any, tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Returns the outputs of a file, in its order.

    Args:
        session: An opened file.
        tensors: Input -> tensor on the CPU; those that the file does not read are left out.
    """
    read = {source.name for source in session.get_inputs()}
    fed = {name: x.contiguous().numpy() for name, x in tensors.items() if name in read}
    return [torch.from_numpy(np.asarray(output)) for output in _run(session, fed)]


def _run(session: Any, fed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    with explained(fed):
        outputs: list[np.ndarray] = session.run(None, fed)
    return outputs


@contextlib.contextmanager
def explained(fed: Mapping[str, np.ndarray | Tensor]) -> Iterator[None]:
    """Makes one sentence of what ONNX Runtime raises as it runs a file, or its quantizer does.

    Args:
        fed: Input -> what the file is run on.

    Raises:
        ExportError: If ONNX Runtime fails.
    """
    try:
        yield
    except Exception as error:
        if not _is_runtimes(error):
            raise
        shapes = ", ".join(f"{name} {tuple(x.shape)}" for name, x in fed.items())
        raise ExportError(
            f"ONNX Runtime cannot run the exported network on {shapes} ({first_line(error)}); "
            f"export for one number of samples (amc export --batch N), or the part of the network "
            f"that computes with tensors (part=...)."
        ) from error


def _is_runtimes(error: Exception) -> bool:
    """Whether ONNX Runtime raised an error; its exceptions share no base class."""
    return type(error).__module__.split(".")[0] == "onnxruntime"


def time_onnx(
    paths: Mapping[str, Path],
    inputs: Sequence[int] | Mapping[str, Tensor],
    *,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    seconds: float = _SECONDS_PER_BATCH_SIZE,
) -> dict[str, dict[str, float]]:
    """Times several ONNX files against each other, on one thread.

    Args:
        paths: Name -> file.
        inputs: ``(C, H, W)`` of random images, or input -> tensor with samples to repeat, as
            ``Interface.named`` returns them.
        batch_sizes: Samples per call.
        seconds: About how long to measure per batch size.

    Returns:
        Name -> batch size (as text) -> median milliseconds per call.
    """
    sessions = [open_session(path) for path in paths.values()]
    results: dict[str, dict[str, float]] = {name: {} for name in paths}
    generator = torch.Generator().manual_seed(0)
    for size in batch_sizes:
        tensors: Mapping[str, Tensor]
        if isinstance(inputs, Mapping):
            tensors = {name: _repeated(tensor, size) for name, tensor in inputs.items()}
        else:
            tensors = {"": torch.randn(size, *inputs, generator=generator)}
        calls = [partial(_run, session, _feed(session, tensors)) for session in sessions]
        for name, times in zip(paths, time_in_turns(calls, seconds), strict=True):
            results[name][str(size)] = round(statistics.median(times), 4)
    return results


def _repeated(tensor: Tensor, size: int) -> Tensor:
    return tensor[torch.arange(size) % len(tensor)] if tensor.ndim else tensor


def _feed(session: Any, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Returns inputs in the types that a file takes; one alone whatever its name."""
    sources = session.get_inputs()
    if len(tensors) == 1:
        tensors = {sources[0].name: next(iter(tensors.values()))}
    fed = {source.name: tensors[source.name] for source in sources}
    for source in sources:
        if source.type == "tensor(uint8)" and fed[source.name].is_floating_point():
            pixels = 64.0 * fed[source.name] + 128.0
            fed[source.name] = pixels.clamp(0.0, 255.0).to(torch.uint8)
    return {name: tensor.contiguous().numpy() for name, tensor in fed.items()}


def time_in_turns(
    calls: Sequence[Callable[[], object]],
    seconds: float,
    *,
    least: int = _LEAST_ROUNDS,
    clock: Callable[[], float] = time.process_time,
) -> list[list[float]]:
    """Times calls that take turns, so that whatever else the machine does hits all alike.

    Args:
        calls: What to time.
        seconds: About how long to measure.
        least: Rounds, at least.
        clock: For how long; by default the processor's, so that a busy machine does not leave
            fewer rounds. Calls that wait for another device need the wall's.

    Returns:
        Milliseconds of every round, for each call.
    """
    for call in calls:
        for _ in range(_WARM_UP):
            call()
    times: list[list[float]] = [[] for _ in calls]
    end = clock() + seconds
    for done in range(_ROUNDS):
        if done >= least and clock() > end:
            break
        # The first to run changes from round to round: what a time slice ends with is not
        # always the same network.
        order = list(zip(calls, times, strict=True))
        for call, samples in order if done % 2 else reversed(order):
            call()  # its own data back into the caches
            start = time.perf_counter()
            call()
            samples.append(1000.0 * (time.perf_counter() - start))
    return times
