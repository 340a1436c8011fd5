"""A network as a graph whose batch and sequence axes are free, for the ONNX exporter."""

from __future__ import annotations

import inspect
import linecache
import logging
import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from amc_compress.learners.export.onnx_options import BATCH
from amc_env import CompressionError
from amc_env.validation.sentences import first_line

Axes: TypeAlias = Mapping[int, str]
"""Axis -> its name, for the axes of a tensor that may have any length."""

_SHAPES = "torch.fx.experimental.symbolic_shapes"
_NOT_THE_NETWORK = ("torch", "amc_compress", "amc_env")


class ExportError(CompressionError):
    """The exported file does not compute what the network computes."""


def capture(
    network: nn.Module, examples: Sequence[Tensor], axes: Sequence[Axes] | None
) -> torch.export.ExportedProgram:
    """Returns the graph of a network.

    Args:
        network: In ``eval`` mode, on the CPU; it takes these tensors by position.
        examples: A batch of at least two samples where the batch is free.
        axes: Of each example, what may have any length; ``None`` where every length is fixed.

    Raises:
        ExportError: If it cannot be captured so.
    """
    shapes = None if axes is None else _shapes(network, axes)
    lines: list[str] = []
    try:
        with _noting_lines(lines):
            return torch.export.export(
                network, tuple(examples), dynamic_shapes=shapes, strict=False
            )
    except Exception as error:  # torch.export promises no kinds of errors
        first = error
    try:
        # Reads the forward as bytecode: it follows ``len(x)``, which runs as a number above.
        return torch.export.export(network, tuple(examples), dynamic_shapes=shapes, strict=True)
    except Exception:
        if lines and f"Constraints violated ({BATCH})" in str(first):
            raise ExportError(_fixed(lines[0])) from first
        raise ExportError(
            f"This network cannot be exported to ONNX ({first_line(first)}); add --no-export to go "
            f"without, or export the part of it that computes with tensors (part=...)."
        ) from first


def _shapes(network: nn.Module, axes: Sequence[Axes]) -> tuple[Any, ...]:
    """Returns the axes in the form that ``torch.export`` takes."""
    batch = torch.export.Dim(BATCH, min=1)
    # Of the others it finds out which are equal, and which have to be fixed.
    shapes = tuple(
        {axis: batch if name == BATCH else torch.export.Dim.AUTO for axis, name in free.items()}
        for free in axes
    )
    kinds = [p.kind for p in inspect.signature(network.forward).parameters.values()]
    return (shapes,) if kinds == [inspect.Parameter.VAR_POSITIONAL] else shapes


def _fixed(line: str) -> str:
    return (
        f"This network uses the number of samples as a number of Python's, which fixes the batch "
        f"of the ONNX file, at {line}: compute with x.shape[0] itself, or with -1 in a view, or "
        f"export for one number of samples (amc export --batch N)."
    )


@contextmanager
def _noting_lines(lines: list[str]) -> Iterator[None]:
    """Notes the lines of the user's code that restrict the batch, as the shapes are recorded."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "[guard added]" in str(record.msg):
                line = _line_outside(sys._getframe())
                if line is not None:
                    lines.append(line)

    logger, handler = logging.getLogger(_SHAPES), Handler()
    before = logger.level, logger.propagate
    others = logger.handlers[:]
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False
    try:
        yield
    finally:
        logger.handlers[:] = others
        logger.setLevel(before[0])
        logger.propagate = before[1]


def _line_outside(frame: FrameType | None) -> str | None:
    """Returns the innermost line of the network's own code: not of torch, nor of this package."""
    standard = sysconfig.get_path("stdlib")
    while frame is not None:
        top = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        file = frame.f_code.co_filename
        is_standard = file.startswith(standard) and "site-packages" not in file
        if top not in _NOT_THE_NETWORK and not is_standard and not file.startswith("<"):
            text = linecache.getline(file, frame.f_lineno).strip()
            return f"{file}, line {frame.f_lineno}" + (f" ({text})" if text else "")
        frame = frame.f_back
    return None


__all__ = ["Axes", "ExportError", "capture"]
