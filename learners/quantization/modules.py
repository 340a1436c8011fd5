"""Convolutions and linear layers that quantize their weights and their input."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from learners.quantization.quantizer import Quantizer


class QuantizedConv2d(nn.Conv2d):
    """A convolution on a quantized input with quantized weights; bias in float32.

    Attributes:
        weight_quantizer: ``None`` leaves the weights in float32.
        input_quantizer: ``None`` leaves the input in float32.
    """

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    @classmethod
    def of(
        cls, conv: nn.Conv2d, weights: Quantizer | None, inputs: Quantizer | None
    ) -> QuantizedConv2d:
        """Builds the quantized twin of a convolution; the parameters are shared, not copied."""
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        twin.__dict__.update({k: v for k, v in conv.__dict__.items() if not k.startswith("_")})
        twin._reversed_padding_repeated_twice = conv._reversed_padding_repeated_twice
        twin.weight, twin.bias = conv.weight, conv.bias
        twin.weight_quantizer, twin.input_quantizer = weights, inputs
        return twin.train(conv.training)

    def quantized_weight(self) -> Tensor:
        """Returns the weights as they are used, in the shape of ``weight``."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution, shape (N, out, H', W')."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        out: Tensor = self._conv_forward(x, self.quantized_weight(), self.bias)
        return out


class QuantizedLinear(nn.Linear):
    """A linear layer on a quantized input with quantized weights; bias in float32.

    Attributes:
        weight_quantizer: ``None`` leaves the weights in float32.
        input_quantizer: ``None`` leaves the input in float32.
    """

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None

    @classmethod
    def of(
        cls, linear: nn.Linear, weights: Quantizer | None, inputs: Quantizer | None
    ) -> QuantizedLinear:
        """Builds the quantized twin of a linear layer; the parameters are shared, not copied."""
        twin = cls.__new__(cls)
        nn.Module.__init__(twin)
        twin.in_features, twin.out_features = linear.in_features, linear.out_features
        twin.weight, twin.bias = linear.weight, linear.bias
        twin.weight_quantizer, twin.input_quantizer = weights, inputs
        return twin.train(linear.training)

    def quantized_weight(self) -> Tensor:
        """Returns the weights as they are used, in the shape of ``weight``."""
        return self.weight if self.weight_quantizer is None else self.weight_quantizer(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product, shape (..., out_features)."""
        if self.input_quantizer is not None:
            x = self.input_quantizer(x)
        return F.linear(x, self.quantized_weight(), self.bias)


QuantizedLayer = QuantizedConv2d | QuantizedLinear


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Returns the quantized layers of a network by qualified name, in network order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedConv2d | QuantizedLinear)
    }
