"""Rounded weights as ``compressed-tensors`` packs them (``pack-quantized``).

A row of codes is a string of bits, the first code in the lowest ones, filled up to whole words of
32 bits: release 0.20. Earlier releases lay out 3, 5, 6 and 7 bits otherwise.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from amc_compress.learners.export.bits.configs import InputScheme, compressed_tensors_config
from amc_compress.learners.export.bits.schemes import WeightScheme
from amc_compress.learners.layers.quantized import QuantizedLayer, quantized_layers
from amc_compress.learners.packing.format import pack_bits
from amc_compress.learners.packing.sharing import shared_names
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_env.errors import InputDataError
from amc_env.validation.sentences import some

_WORD = 32  # bits


@dataclass(frozen=True)
class PackedIntegers:
    """What takes the place of the weights of a network's layers.

    Args:
        tensors: Name in the state dict -> tensor.
        config: The ``quantization_config`` of ``config.json``.
        layers: Layers whose weights are in it.
        float_layers: Quantized layers that are not: their values are stored in float.
    """

    tensors: Mapping[str, Tensor]
    config: Mapping[str, Any]
    layers: tuple[str, ...]
    float_layers: tuple[str, ...]


def packed_integers(
    network: nn.Module, stock: nn.Module, names: Mapping[str, str]
) -> PackedIntegers:
    """Returns the integers of a quantized network, for the class of ``transformers`` it fits.

    Linear layers of symmetric, equally spaced weights are packed, with a scale per tensor, channel,
    or group that divides the inputs. Tables, tied weights, layers that hold an input a row, affine
    weights, codebooks and buckets stay in float: the library has no integers for them, or
    ``transformers`` does not load them (tables and packed zero points, 5.24).

    Args:
        network: Of a learner that quantizes.
        stock: Of the stock class, plain, of the same shapes.
        names: Key of the state dict of ``network`` -> that of ``stock``.

    Raises:
        InputDataError: If no layer can be packed, or a layer that cannot be rounds its input.
    """
    tied = {name for pair in shared_names(stock).items() for name in pair}
    tensors: dict[str, Tensor] = {}
    schemes: dict[str, WeightScheme | None] = {}
    inputs: dict[str, InputScheme] = {}
    left = []
    for name, layer in quantized_layers(network).items():
        target = names.get(f"{name}.weight", "").removesuffix(".weight")
        scheme = _scheme(layer) if _is_linear(stock, target) else None
        if scheme is None or f"{target}.weight" in tied:
            left.append(name)
            continue
        schemes[target] = scheme
        tensors |= {f"{target}.{key}": value for key, value in _weights(layer).items()}
        if layer.input_quantizer is not None:
            inputs[target] = _input_scheme(name, layer.input_quantizer)
            tensors |= {f"{target}.{k}": v for k, v in _ranges(layer.input_quantizer).items()}
    if not schemes:
        raise InputDataError(
            f"Expected linear layers of symmetric, equally spaced weights with a scale per tensor, "
            f"channel or group for the format of compressed-tensors, got none: not "
            f"{some(left, 3)}; leave the format out, and amc_compress.load reads the folder."
        )
    held = quantized_layers(network)
    if rounding := [name for name in left if held[name].input_quantizer is not None]:
        raise InputDataError(
            f"Expected inputs in float of layers whose weights compressed-tensors cannot pack, got "
            f"rounded ones of {some(rounding, 3)}; search with --activation-bits 16."
        )
    linear = [name for name, layer in stock.named_modules() if isinstance(layer, nn.Linear)]
    config = compressed_tensors_config({**dict.fromkeys(linear), **schemes}, inputs)
    config["quantization_status"] = "compressed"
    for group in config["config_groups"].values():
        group["format"] = config["format"]  # or the library chooses one by the bits
    return PackedIntegers(tensors, config, tuple(schemes), tuple(left))


def _is_linear(stock: nn.Module, name: str) -> bool:
    return bool(name) and isinstance(stock.get_submodule(name), nn.Linear)


def _scheme(layer: QuantizedLayer) -> WeightScheme | None:
    quantizer = layer.weight_quantizers().get("weight")
    if not isinstance(quantizer, UniformQuantizer) or quantizer.granularity == "split":
        return None
    size = quantizer.bucket_size if quantizer.granularity == "group" else None
    if quantizer.axis or not quantizer.symmetric:
        return None
    if size is not None and layer.get_parameter("weight").shape[1] % size:
        return None
    return WeightScheme(quantizer.bits, size)


@torch.no_grad()
def _weights(layer: QuantizedLayer) -> dict[str, Tensor]:
    """The tensors of a layer: words of codes, scales (rows, groups), and the shape."""
    quantizer: Any = layer.weight_quantizers()["weight"]
    weight, scale = layer.masked_weight(), quantizer.scale.detach().cpu()
    # Their integers begin one further down, where ours have none.
    codes = quantizer.encode(weight).cpu().numpy() + 1
    scale = scale.expand(len(codes)) if scale.numel() == 1 else scale
    return {
        "weight_packed": _words(codes, quantizer.bits),
        "weight_scale": scale.reshape(len(codes), -1).clone(),
        "weight_shape": torch.tensor(weight.shape),
    }


def _words(codes: np.ndarray[Any, Any], bits: int) -> Tensor:
    """Packs every row, shape (rows, columns), into words: int32, shape (rows, words)."""
    rows, columns = codes.shape
    filled = np.pad(codes, ((0, 0), (0, -columns % _WORD)))
    words = np.frombuffer(pack_bits(filled, bits), "<i4").reshape(rows, -1)
    return torch.from_numpy(words[:, : -(-columns * bits // _WORD)].astype(np.int32))


def _input_scheme(name: str, quantizer: Any) -> InputScheme:
    if not isinstance(quantizer, UniformQuantizer) or quantizer.granularity != "tensor":
        raise InputDataError(
            f"Expected one range for the inputs of {name}, got {quantizer}; search with "
            f"--activation-bits 16."
        )
    return InputScheme(quantizer.bits, quantizer.symmetric)


def _ranges(quantizer: Any) -> dict[str, Tensor]:
    """The tensors of a layer's inputs; their integers are signed."""
    found = {"input_scale": quantizer.scale.detach().cpu().reshape(1).clone()}
    if not quantizer.symmetric:
        zero = quantizer.zero_point.cpu() - 2 ** (quantizer.bits - 1)
        found["input_zero_point"] = zero.reshape(1).to(torch.int8)
    return found
