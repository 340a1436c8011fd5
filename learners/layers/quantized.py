"""Layers that quantize their weights and their input."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.masked import Masked, twin_of
from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.substitution import substituted

_SUFFIX = "_quantizer"
INPUT = f"input{_SUFFIX}"
"""Name of the quantizer of the input; those of weights are called ``weight_quantizer``."""


class QuantizedLayer(Masked):
    """The quantizers of a layer's weights and of its input, and perhaps a mask.

    The forward is that of the layer's own class, which reads quantized weights.

    Attributes:
        weight_quantizer: ``None`` leaves the weights in float32. A recurrent layer has a quantizer
            for each of its weights in place of it, ``weight_ih_l0_quantizer`` and so on.
        input_quantizer: ``None`` leaves the input in float32.
        quantized_parameters: Names of the parameters that may have a quantizer.
        plain: The class of the layer without quantizers.
    """

    weight_quantizer: Quantizer | None
    input_quantizer: Quantizer | None
    quantized_parameters: tuple[str, ...]
    prefix = "Quantized"
    twins: ClassVar[dict[type[nn.Module], type[Any]]] = {}

    @classmethod
    def of(
        cls,
        layer: nn.Module,
        weights: Quantizer | Mapping[str, Quantizer | None] | None,
        inputs: Quantizer | None,
    ) -> Self:
        """Builds the quantized twin of a layer; the parameters are shared, not copied.

        Args:
            layer: A layer of the class :attr:`plain`, masked or not.
            weights: Quantizer of its weight, or parameter -> quantizer.
            inputs: Quantizer of its input.
        """
        if not isinstance(weights, Mapping):
            weights = {"weight": weights}
        twin = twin_of(cls, layer)
        twin.quantized_parameters = tuple(weights)
        for name, quantizer in weights.items():
            setattr(twin, name + _SUFFIX, quantizer)
        twin.input_quantizer = inputs
        return twin

    def weight_quantizers(self) -> dict[str, Quantizer]:
        """Returns parameter -> its quantizer, of those that have one."""
        found = {name: getattr(self, name + _SUFFIX) for name in self.quantized_parameters}
        return {name: quantizer for name, quantizer in found.items() if quantizer is not None}

    def quantized_weight(self, parameter: str = "weight") -> Tensor:
        """Returns weights as they are used, in their own shape."""
        quantizer = getattr(self, parameter + _SUFFIX)
        mask = self.weight_mask if parameter == "weight" else None
        weight: Tensor = self._parameters[parameter]  # type: ignore[assignment]
        if quantizer is not None:
            weight = quantizer(weight)
        return weight if mask is None else weight * mask

    def quantized_input(self, x: Tensor) -> Tensor:
        """Returns the input as it is used, in its own shape."""
        return x if self.input_quantizer is None else self.input_quantizer(x)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Returns what the layer's own forward makes of quantized weights and input."""
        if self.input_quantizer is not None:
            args, kwargs = with_input(args, kwargs, self.input_quantizer)
        used = {name: self.quantized_weight(name) for name in self.quantized_parameters}
        with substituted(self, used):
            return super().forward(*args, **kwargs)


def with_input(args: tuple[Any, ...], kwargs: Mapping[str, Any], change: Any) -> Any:
    """Returns the arguments of a layer's call with its input changed: its first, named or not."""
    if args:
        return (change(args[0]), *args[1:]), dict(kwargs)
    name = next(iter(kwargs))
    return (), {**kwargs, name: change(kwargs[name])}


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A convolution on a quantized input with quantized weights; bias in float32."""

    plain = nn.Conv2d

    def forward(self, x: Tensor) -> Tensor:
        """Returns the convolution, shape (N, out, H', W')."""
        out: Tensor = self._conv_forward(
            self.quantized_input(x), self.quantized_weight(), self.bias
        )
        return out


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A linear layer on a quantized input with quantized weights; bias in float32."""

    plain = nn.Linear

    def forward(self, x: Tensor) -> Tensor:
        """Returns the product, shape (..., out_features)."""
        return F.linear(self.quantized_input(x), self.quantized_weight(), self.bias)


QuantizedLayer.twins |= {nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}


def quantized_layers(network: nn.Module) -> dict[str, QuantizedLayer]:
    """Returns the quantized layers of a network by qualified name, in network order."""
    return {
        name: module
        for name, module in network.named_modules()
        if isinstance(module, QuantizedLayer)
    }


@dataclass(frozen=True)
class QuantizedWeight:
    """A weight of a network that may have a quantizer, and the module that holds it."""

    layer: QuantizedLayer
    parameter: str

    @property
    def quantizer(self) -> Quantizer | None:
        """What quantizes it; ``None`` leaves it in float32."""
        return self.layer.weight_quantizers().get(self.parameter)

    @property
    def values(self) -> Tensor:
        """The weights as they are trained."""
        return self.layer.get_parameter(self.parameter)

    @property
    def mask(self) -> Tensor | None:
        """Which of them count; all if ``None``."""
        return self.layer.weight_mask if self.parameter == "weight" else None

    def used(self) -> Tensor:
        """Returns the weights as they are used, in their own shape."""
        return self.layer.quantized_weight(self.parameter)


def quantized_weights(network: nn.Module) -> dict[str, QuantizedWeight]:
    """Returns the weights of the quantized layers, by the names that layers of a graph have."""
    return dict(_weights(network))


def _weights(network: nn.Module) -> Iterator[tuple[str, QuantizedWeight]]:
    for name, layer in quantized_layers(network).items():
        for parameter in layer.quantized_parameters:
            own = name if parameter == "weight" else f"{name}.{parameter}"
            yield own, QuantizedWeight(layer, parameter)
