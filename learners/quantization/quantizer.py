"""What every quantizer offers: a differentiable stand-in for training, integers for the file."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import Tensor, nn


class Quantizer(nn.Module, ABC):
    """Maps a tensor onto at most ``2 ** bits`` values (per bucket).

    Everything the map depends on (scales, zero points, codebooks) is a parameter or a buffer, so
    that a state dict holds it.

    Attributes:
        bits: Bits per number, 2 to 8.
    """

    bits: int

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Returns ``decode(encode(x))``, differentiable by a straight-through estimator."""

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Returns codes in ``0 .. 2 ** bits - 1``, uint8, in the shape of ``x``."""

    @abstractmethod
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the float32 numbers that the codes stand for, bit for bit those of forward."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Returns plain JSON values from which an empty quantizer of this kind can be built."""
