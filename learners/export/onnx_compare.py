"""ONNX files against the networks that they were written from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.export.interface import Interface, plain_answer, repeated
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.export.runtime import open_session, run_named
from amc_compress.learners.tasks.inputs import (
    Inputs,
    ask,
    count,
    mapped,
    pieces,
    rows,
    tensors_of,
)
from amc_compress.learners.tasks.registry import make_task
from amc_compress.learners.tasks.task import Task

_BATCH = 64
_TINY = 1e-12  # below all squares of an output that says something


@dataclass(frozen=True)
class Comparison:
    """What an ONNX file has to compute, and where that is looked at.

    Args:
        network: In ``eval`` mode, on the CPU.
        interface: Of the network.
        inputs: Where both are compared.
        options: Of the file.
        tolerance: Largest allowed difference relative to the largest number of an output (or to
            1); of integers the largest allowed share that differs.
        mean_tolerance: Largest allowed root mean square of the differences relative to that of an
            output.
        task: Says how alike answers are; see ``export_onnx``.
    """

    network: nn.Module
    interface: Interface
    inputs: Inputs
    options: OnnxOptions
    tolerance: float = math.inf
    mean_tolerance: float = math.inf
    task: str | Task = "agreement"

    def run(self, path: Path) -> tuple[float, float, int]:
        """Compares a file with the network.

        Returns:
            Largest difference of a number, agreement, and how many samples were compared.

        Raises:
            ExportError: If the file computes something else.
        """
        session = open_session(path)
        differences = [_Difference(name) for name in self.interface.outputs]
        agreed: list[float] = []
        total = 0
        for batch in self._batches():
            expected, got = self._both(session, batch)
            for difference, right, here in zip(differences, expected, got, strict=True):
                difference.update(right, here)
            total += count(batch)
            agreed.append(_whole(self._agreement(got, expected) * count(batch)))
        for batch in self._shorter(session):
            expected, got = self._both(session, batch)
            for difference, right, here in zip(differences, expected, got, strict=True):
                difference.update(right, here)
        for difference in differences:
            difference.check(self.tolerance, self.mean_tolerance)
        largest = max(difference.largest for difference in differences)
        return largest, sum(agreed) / total, count(self.inputs)

    def _both(self, session: Any, batch: Inputs) -> tuple[list[Tensor], list[Tensor]]:
        """Returns the tensors of the network's answer, and those of the file's."""
        fed = self.interface.named(batch)
        taken = batch
        if isinstance(batch, Tensor):
            taken, fed[self.interface.inputs[0]] = self.options.feed(batch)
        with torch.no_grad():
            expected = list(tensors_of(plain_answer(ask(self.network, taken))))
        got = run_named(session, dict(zip(self._names(), fed.values(), strict=True)))
        for name, right, here in zip(self.interface.outputs, expected, got, strict=True):
            if right.shape != here.shape:
                raise ExportError(
                    f"The exported network gives {name} of shape {tuple(here.shape)}, torch "
                    f"{tuple(right.shape)}: export the part of it that computes with tensors of "
                    f"fixed shapes (part=...)."
                )
        return expected, got

    def _agreement(self, got: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
        made = make_task(self.task)
        answers = [made.outputs(self.interface.answer(tensors)) for tensors in (got, expected)]
        return made.agreement(*answers)

    def _batches(self) -> Iterator[Inputs]:
        """Yields samples in batches of several sizes, or of the only one that a file takes."""
        inputs, size = self.inputs, self.options.batch
        total = count(inputs)
        if size is not None:
            # The first samples again, so that the last batch is as large as all others.
            yield from pieces(repeated(inputs, -(-total // size) * size), size)
            return
        yield rows(inputs, slice(0, 1))  # several sizes, because the batch axis is free
        if total > 1:
            yield from pieces(rows(inputs, slice(1, total)), _BATCH)

    def _shorter(self, session: Any) -> Iterator[Inputs]:
        """Yields some samples again, with half of the length along the other free axes."""
        free = {
            source.name: [i for i, size in enumerate(source.shape) if i and isinstance(size, str)]
            for source in session.get_inputs()
        }
        if not any(free.values()):
            return
        names = iter(self._names())

        def cut(tensor: Tensor) -> Tensor:
            for axis in free.get(next(names), ()):
                tensor = tensor.narrow(axis, 0, -(-tensor.shape[axis] // 2))
            return tensor

        inputs = repeated(self.inputs, self.options.batch or min(2, count(self.inputs)))
        inputs = mapped(cut, inputs)
        # A length that the network itself does not take is promised by no file.
        try:
            with torch.no_grad():
                ask(self.network, inputs)
        except Exception:
            return
        yield inputs

    def _names(self) -> tuple[str, ...]:
        """Returns the names of the inputs in the file."""
        renamed = self.options.input_name
        return self.interface.inputs if renamed is None else (renamed,)


class _Difference:
    """Collects by how much an output of two networks differs."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.largest = 0.0
        self._scale = 1.0
        self._other = self._seen = 0
        self._is_integer = False
        self._squares = self._squared_differences = 0.0

    def update(self, expected: Tensor, got: Tensor) -> None:
        """Takes in the output for a batch: numbers, or integers such as chosen classes."""
        if not expected.numel():
            return
        self._is_integer = not expected.is_floating_point()
        self._seen += expected.numel()
        self._other += int((expected != got).sum())
        apart = (got.float() - expected.float()).abs()
        # Infinities of both, as masks have, are equal; what is NaN in one of them is not.
        apart = torch.where(expected == got, 0.0, apart)
        found = float(apart.max())
        self.largest = found if math.isnan(found) else max(self.largest, found)
        finite = expected[expected.isfinite()] if expected.is_floating_point() else expected
        if finite.numel():
            self._scale = max(self._scale, float(finite.abs().max()))
        self._squares += float(finite.double().square().sum())
        self._squared_differences += float(apart.double().square().sum())

    def check(self, tolerance: float, mean_tolerance: float) -> None:
        """Raises ``ExportError`` if there is more than is allowed."""
        if self._is_integer:
            if self._other > tolerance * self._seen:
                raise ExportError(
                    f"The exported network differs from torch in {self._other} of {self._seen} "
                    f"integers of {self.name}; the file was not kept."
                )
        elif not self.largest <= tolerance * self._scale:
            raise ExportError(
                f"The exported network differs from torch by {self.largest:.2g} in {self.name} "
                f"(allowed {tolerance:g} of its largest number, {self._scale:.3g}); the file was "
                f"not kept."
            )
        elif not self._squared_differences <= mean_tolerance**2 * max(self._squares, _TINY):
            share = math.sqrt(self._squared_differences / max(self._squares, _TINY))
            raise ExportError(
                f"The exported network differs from torch by {share:.1%} in {self.name} (root mean "
                f"square; allowed {mean_tolerance:.1%}); the file was not kept."
            )


def _whole(samples: float) -> float:
    """Returns a number of samples without the rounding of the share that it was made from."""
    return float(round(samples)) if abs(samples - round(samples)) < 1e-9 else samples
