"""Dictionaries of libraries that round weights: compressed-tensors, AutoRound, torchao, GPTQModel.

They say how many bits a layer gets; the libraries round by themselves, from float weights. All are
plain JSON, and none needs the library that reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from amc_compress.learners.export.bits.schemes import Schemes, WeightScheme

_PER_CHANNEL = -1  # as a group size, of AutoRound and GPTQModel


@dataclass(frozen=True)
class InputScheme:
    """Equally spaced values for the inputs of a layer, in one range that does not change.

    Args:
        bits: Per number.
        symmetric: Whether 0 is in the middle of the integers.
    """

    bits: int
    symmetric: bool = False


def compressed_tensors_config(
    schemes: Schemes, inputs: Mapping[str, InputScheme] | None = None
) -> dict[str, Any]:
    """Returns the ``quantization_config`` of ``compressed-tensors``, which vLLM reads.

    Layers of one scheme are a group, whose targets are their names. Layers that stay in float are
    ignored by name.

    Args:
        schemes: Layer -> scheme of its weights.
        inputs: Layer -> that of its inputs, where they are rounded.
    """
    groups: dict[tuple[WeightScheme, InputScheme | None], list[str]] = {}
    for layer, scheme in schemes.items():
        if scheme is not None:
            groups.setdefault((scheme, (inputs or {}).get(layer)), []).append(layer)
    return {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "config_groups": {
            f"group_{number}": {
                "targets": layers,
                "weights": _weights(scheme),
                **({} if rounded is None else {"input_activations": _inputs(rounded)}),
            }
            for number, ((scheme, rounded), layers) in enumerate(groups.items())
        },
        "ignore": [layer for layer, scheme in schemes.items() if scheme is None],
    }


def _weights(scheme: WeightScheme) -> dict[str, Any]:
    """The arguments of one group's weights."""
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "channel" if scheme.group_size is None else "group",
        "group_size": scheme.group_size,
        "dynamic": False,
    }


def _inputs(scheme: InputScheme) -> dict[str, Any]:
    """The arguments of one group's inputs."""
    return {
        "num_bits": scheme.bits,
        "type": "int",
        "symmetric": scheme.symmetric,
        "strategy": "tensor",
        "dynamic": False,
    }


def auto_round_config(schemes: Schemes) -> dict[str, dict[str, Any]]:
    """Returns the ``layer_config`` of AutoRound: layer -> its scheme.

    8 bits are symmetric in any case: it rejects others, as its files have no zero point for them.
    """
    return {
        layer: {"bits": 16, "act_bits": 16, "data_type": "float"}
        if scheme is None
        else {
            "bits": scheme.bits,
            "group_size": _size(scheme),
            "sym": scheme.symmetric or scheme.bits == 8,
            "data_type": "int",
            "act_bits": 16,
        }
        for layer, scheme in schemes.items()
    }


def gptqmodel_config(schemes: Schemes) -> dict[str, dict[str, Any]]:
    """Returns the ``dynamic`` of GPTQModel's ``QuantizeConfig``: pattern of a name -> overrides.

    Patterns that begin with ``-:`` name what stays as it is.
    """
    return {
        f"{'-' if scheme is None else '+'}:^{re.escape(layer)}$": {}
        if scheme is None
        else {"bits": scheme.bits, "group_size": _size(scheme), "sym": scheme.symmetric}
        for layer, scheme in schemes.items()
    }


def _size(scheme: WeightScheme) -> int:
    return _PER_CHANNEL if scheme.group_size is None else scheme.group_size


def torchao_config(schemes: Schemes) -> dict[str, Any]:
    """Returns a ``FqnToConfig`` of torchao (0.15 and later) as JSON.

    ``torchao.core.config.config_from_dict`` makes the object of it, for ``quantize_`` or the
    ``TorchAoConfig`` of ``transformers``.
    """
    layers = {layer: None if scheme is None else _intx(scheme) for layer, scheme in schemes.items()}
    return {"_type": "FqnToConfig", "_version": 1, "_data": {"fqn_to_config": layers}}


def _intx(scheme: WeightScheme) -> dict[str, Any]:
    """An ``IntxWeightOnlyConfig``."""
    grouped = scheme.group_size is not None
    granularity = {"group_size": scheme.group_size} if grouped else {"axis": 0}
    kind = "SYMMETRIC" if scheme.symmetric else "ASYMMETRIC"
    return {
        "_type": "IntxWeightOnlyConfig",
        "_version": 2,
        "_data": {
            "weight_dtype": {"_type": "torch.dtype", "_data": f"int{scheme.bits}"},
            "granularity": {
                "_type": "PerGroup" if grouped else "PerAxis",
                "_version": 1,
                "_data": granularity,
            },
            "mapping_type": {"_type": "MappingType", "_data": kind},
        },
    }
