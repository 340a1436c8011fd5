"""What a table of latencies is measured for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch

from amc_compress.learners.export.interface import repeated
from amc_compress.learners.latency.design import check_points
from amc_compress.learners.latency.networks import PRECISIONS
from amc_compress.learners.tasks.inputs import Inputs, tensors_of
from amc_env.costs.cost_table import precision_bits


@dataclass(frozen=True)
class TableOptions:
    """Options of a table; a table is resumed only with the same ones.

    Args:
        model: Name of the network, for the reader.
        input_shape: Of one image, (C, H, W); of networks of images.
        batch: Images per call.
        round_to: Kept channels come in multiples of this.
        points: Widths per axis, at most: 3, 5 or 7.
        precisions: ``"fp32"``, ``"int8"``.
        measured: Whether this machine measures it, which takes those precisions only.
        example: What networks of anything else are called with.
        part: The submodule that is compressed, and measured alone, if not the whole network.
    """

    model: str
    input_shape: tuple[int, ...] = ()
    batch: int = 1
    round_to: int = 8
    points: int = 7
    precisions: tuple[str, ...] = PRECISIONS
    measured: bool = True
    example: Inputs | None = field(default=None, compare=False)
    part: str | None = None

    def __post_init__(self) -> None:
        for precision in self.precisions:
            precision_bits(precision)
        unknown = [p for p in self.precisions if p not in PRECISIONS and self.measured]
        if unknown or not self.precisions:
            raise ValueError(
                f"ONNX Runtime is measured in {' and '.join(PRECISIONS)}, got "
                f"{', '.join(unknown) or 'none'}; other precisions come from tables made elsewhere "
                f"(docs/latency_tables.md)."
            )
        if self.batch < 1:
            raise ValueError(f"Expected a batch of at least 1, got {self.batch}.")
        if self.round_to < 1:
            raise ValueError(f"Expected channels in multiples of at least 1, got {self.round_to}.")
        check_points(self.points)
        if (self.example is None) != bool(self.input_shape):
            raise ValueError(
                "Expected the input_shape of images or an example of other inputs, got "
                f"{'neither' if self.example is None else 'both'}: pass one of them."
            )

    def inputs(self) -> Inputs:
        """Returns what a network is called with: random images, or the example's samples."""
        if self.example is not None:
            return repeated(self.example, self.batch)
        generator = torch.Generator().manual_seed(0)
        return torch.rand(self.batch, *self.input_shape, generator=generator)

    def traced_with(self) -> Inputs:
        """Returns what a network is traced with."""
        return torch.zeros(1, *self.input_shape) if self.example is None else self.example

    def document(self) -> dict[str, Any]:
        """Returns the options as they stand in the file."""
        shape: object = list(self.input_shape)
        if self.example is not None:
            shape = [list(tensor.shape[1:]) for tensor in tensors_of(self.example)]
        return {
            "model": self.model, "input_shape": shape,
            "round_to": self.round_to, "points": self.points,
            "precisions": list(self.precisions), "part": self.part,
        }  # fmt: skip
