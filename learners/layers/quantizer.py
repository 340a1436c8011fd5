"""Interface of quantizers: fake quantization for training, integers for files."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import Tensor, nn

from amc_env.validation.checks import check_known

_BUILT_IN = {
    "codebook": "amc_compress.learners.quantization.codebook.quantizer",
    "uniform": "amc_compress.learners.quantization.uniform.quantizer",
}
"""Kind -> module that defines it, for files that are read before anything is quantized."""


class Quantizer(nn.Module, ABC):
    """Maps a tensor onto at most ``2 ** bits`` values (per bucket).

    Everything the map depends on (scales, zero points, codebooks) is a parameter or a buffer, so
    that a state dict holds it.

    Attributes:
        bits: Bits per number, 2 to 8.
        kind: What :meth:`describe` says under ``"kind"``; a class that defines it can be built
            again by :meth:`from_description`.
        no_weight_decay: Scales and centroids are not pulled towards zero in training.
    """

    no_weight_decay: ClassVar[bool] = True

    bits: int
    kind: ClassVar[str]
    _kinds: ClassVar[dict[str, type[Quantizer]]] = {}

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "kind" in cls.__dict__:
            Quantizer._kinds[cls.kind] = cls

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

    @classmethod
    @abstractmethod
    def empty(cls, description: dict[str, Any]) -> Quantizer:
        """Builds a quantizer with tensors of the described shapes, to be filled."""

    def rescale(self, factor: Tensor) -> bool:
        """Multiplies the values of every output channel by a factor, shape (channels,).

        Returns:
            Whether the quantizer can express that; if not, it is unchanged.
        """
        return False

    @staticmethod
    def from_description(description: dict[str, Any]) -> Quantizer:
        """Builds the empty quantizer that :meth:`describe` described.

        Raises:
            ValueError: If the kind is unknown.
        """
        kind = str(description.get("kind"))
        if kind in _BUILT_IN and kind not in Quantizer._kinds:
            importlib.import_module(_BUILT_IN[kind])
        check_known("quantizer", kind, sorted({*Quantizer._kinds, *_BUILT_IN}))
        return Quantizer._kinds[kind].empty(description)
