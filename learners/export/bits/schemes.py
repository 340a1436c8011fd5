"""How the weights of each layer are rounded, as all libraries can say it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from amc_compress.learners.layers.bit_layers import is_bit_module
from amc_compress.learners.layers.quantized import QuantizedLayer, quantized_layers
from amc_compress.learners.layers.weight_forms import is_matrix_layer
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan, DecisionKind

GROUP_SIZE = 128
"""What the field ships where nothing else is said."""

_FLOAT_BITS = 16  # so many bits and more mean that a layer stays as it is
_LEAST, _MOST = 2, 8


@dataclass(frozen=True)
class WeightScheme:
    """Equally spaced values for the weights of a layer.

    Args:
        bits: Per weight, 2 to 8.
        group_size: Consecutive inputs of an output channel that share a scale; None for all of
            them (per channel).
        symmetric: Whether 0 is in the middle of the integers.

    Raises:
        ValueError: If a number is out of range.
    """

    bits: int
    group_size: int | None = GROUP_SIZE
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits != int(self.bits) or not _LEAST <= self.bits <= _MOST:
            raise ValueError(f"Expected {_LEAST} to {_MOST} bits, got {self.bits}.")
        if self.group_size is not None and self.group_size < _LEAST:
            raise ValueError(f"Expected a group size >= {_LEAST}, got {self.group_size}.")


Schemes = Mapping[str, WeightScheme | None]
"""Layer -> scheme, None of a layer that stays in float."""


def plan_schemes(
    plan: Mapping[str, float], *, group_size: int | None = GROUP_SIZE, symmetric: bool = True
) -> dict[str, WeightScheme | None]:
    """Returns the schemes that a plan decides; layers without a decision are not in it.

    Args:
        plan: Decision -> value; all but the bits of weights is left out.
        group_size: Of all layers; None per channel. Their inputs have to be multiples of it.
        symmetric: For all layers.

    Raises:
        InputDataError: If the plan decides no bits.
    """
    bits = CompressionPlan(plan).values_of(DecisionKind.WEIGHT_BITS)
    if not bits:
        raise InputDataError(
            "Expected a plan that decides bits of weights, got one without; search with a learner "
            "that quantizes."
        )
    return {
        layer: WeightScheme(round(number), group_size, symmetric)
        if round(number) < _FLOAT_BITS
        else None
        for layer, number in bits.items()
    }


def check_linear(network: nn.Module) -> None:
    """Checks that no quantized layer is ``x @ weight``, for libraries of ``nn.Linear`` alone.

    Raises:
        InputDataError: If one is: they would leave it in float, or round along the wrong axis.
    """
    for name, layer in quantized_layers(network).items():
        if is_matrix_layer(layer):
            raise InputDataError(
                f"Expected linear layers with a row per output, got {name}, a "
                f"{layer.plain.__name__}, which this library does not round; take "
                f"--format transformers, auto-round or ONNX."
            )


def network_schemes(
    network: nn.Module, *, group_size: int | None = None
) -> dict[str, WeightScheme | None]:
    """Returns the schemes of all layers that can have bits, as a quantized network has them.

    Args:
        network: Of a learner that quantizes.
        group_size: For layers that have a scale per tensor, channel or bucket; those with groups
            have their own. Layers whose inputs are no multiple of it are per channel.

    Raises:
        InputDataError: If the network is not quantized, or has other values than equally spaced
            ones.
    """
    found: dict[str, WeightScheme | None] = {}
    for name, layer in network.named_modules():
        if isinstance(layer, QuantizedLayer):
            quantizer = layer.weight_quantizers().get("weight")
            found[name] = None if quantizer is None else _scheme(name, layer, group_size)
        elif is_bit_module(layer):
            found[name] = None
    if not any(found.values()):
        raise InputDataError(
            "Expected a network with quantized weights, got one without; search with a learner "
            "that quantizes."
        )
    return found


def _scheme(name: str, layer: QuantizedLayer, group_size: int | None) -> WeightScheme:
    quantizer: Any = layer.weight_quantizers()["weight"]
    if quantizer.kind != "uniform":
        raise InputDataError(
            f"Expected equally spaced values in {name}, got a {quantizer.kind}, which no other "
            f"library reads; quantize with the learner 'uniform', or take the packed file."
        )
    size = quantizer.bucket_size if quantizer.granularity == "group" else group_size
    inputs = layer.get_parameter("weight").movedim(quantizer.axis, 0)[0].numel()
    # The libraries know no last group that is shorter.
    divides = size is not None and inputs % size == 0
    return WeightScheme(quantizer.bits, size if divides else None, quantizer.symmetric)
