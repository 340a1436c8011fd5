"""Convolutions and linear layers that quantize their weights and their input."""

from __future__ import annotations

from typing import Self

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.masked import Masked, twin_of
from amc_compress.learners.layers.quantizer import Quantizer


class _Quantizers(Masked):
    """The two quantizers of a layer, either of which may be missing, and perhaps a mask."""

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    @classmethod
    def of(
        cls, layer: nn.Conv2d | nn.Linear, weights: Quantizer | None, inputs: Quantizer | None
    ) -> Self:
        """Builds the quantized twin of a layer; the parameters are shared, not copied."""
        twin = twin_of(cls, layer)
        twin.weight_quantizer, twin.input_quantizer = weights, inputs
        return twin

    def quantized_weight(self) -> Tensor:
        """Returns the weights as they are used, in the shape of ``weight``."""
        if self.weight_quantizer is None:
            return self.masked_weight()
        weight: Tensor = self.weight_quantizer(self.weight)
        return weight if self.weight_mask is None else weight * self.weight_mask

    def quantized_input(self, x: Tensor) -> Tensor:
        """Returns the input as it is used, in its own shape."""
        return x if self.input_quantizer is None else self.input_quantizer(x)


class QuantizedConv2d(_Quantizers, nn.Conv2d):
    """A convolution on a quantized input with quantized weights; bias in float32.

    Attributes:
        weight_quantizer: ``None`` leaves the weights in float32.
        input_quantizer: ``None`` leaves the input in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution, shape (N, out, H', W')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x), self.quantized_weight(), self.bias
        )
        return out


class QuantizedLinear(_Quantizers, nn.Linear):
    """A linear layer on a quantized input with quantized weights; bias in float32.

    Attributes:
        weight_quantizer: ``None`` leaves the weights in float32.
        input_quantizer: ``None`` leaves the input in float32.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product, shape (..., out_features)."""
        return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Returns the quantized layers of a network by qualified name, in network order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedConv2d | QuantizedLinear)
    }
