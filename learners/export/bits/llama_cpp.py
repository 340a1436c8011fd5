"""Bits per layer as arguments of llama.cpp's ``llama-quantize``."""

from __future__ import annotations

import bisect
import re
from collections.abc import Callable
from typing import Any

from amc_compress.learners.export.bits.schemes import Schemes
from amc_env.errors import InputDataError
from amc_env.support.optional import needed

TYPES = {2: "q2_k", 3: "q3_k", 4: "q4_k", 5: "q5_k", 6: "q6_k", 8: "q8_0"}
"""Least bits of a weight -> type; scales add 0.3 to 0.6 bits."""

FLOAT = "f16"
Names = Callable[[str], str | None]
"""Name of a layer -> that of its tensor in a GGUF file; None where there is none."""


def tensor_types(schemes: Schemes, names: Names) -> list[str]:
    """Returns the ``--tensor-type`` arguments: a pattern of one tensor's name and its type each.

    The types round in blocks of their own (32 or 256 inputs), so that group sizes have no part in
    it; a layer gets the smallest type with at least its bits.

    Args:
        schemes: Layer -> scheme; what stays in float becomes float16.
        names: :func:`gguf_names` of the network, or a mapping's ``get``.

    Raises:
        InputDataError: If a quantized layer has no tensor of its own in the file.
    """
    arguments = []
    for layer, scheme in schemes.items():
        tensor = names(layer)
        if tensor is None:
            if scheme is None:
                continue
            raise InputDataError(
                f"Expected a tensor of {layer} in a GGUF file of this architecture, found none; "
                f"name the architecture of the network."
            )
        kind = FLOAT if scheme is None else _type(scheme.bits)
        arguments.append(f"--tensor-type ^{re.escape(tensor)}\\.weight$={kind}")
    return arguments


def _type(bits: int) -> str:
    known = sorted(TYPES)
    return TYPES[known[bisect.bisect_left(known, bits)]]


def gguf_names(architecture: str, n_blocks: int) -> Names:
    """Returns what finds the names of an architecture's tensors, by the ``gguf`` package.

    Args:
        architecture: As ``config.model_type`` of ``transformers`` calls it: ``"llama"``,
            ``"qwen3"``, ``"bert"`` and others.
        n_blocks: Number of layers.

    Raises:
        InputDataError: If llama.cpp does not know the architecture.
        MissingDependencyError: Without ``gguf``.
    """
    gguf = needed(
        "gguf",
        "Expected gguf for the names that llama.cpp gives to tensors, found none; "
        "`pip install gguf`.",
    )
    known: dict[str, Any] = {_plain(name): key for key, name in gguf.MODEL_ARCH_NAMES.items()}
    if _plain(architecture) not in known:
        raise InputDataError(
            f"Expected an architecture that llama.cpp knows, got {architecture!r}; there are "
            f"{', '.join(sorted(known))}."
        )
    found = gguf.get_tensor_name_map(known[_plain(architecture)], n_blocks)

    def name(layer: str) -> str | None:
        tensor: str | None = found.get_name(layer)
        return tensor

    return name


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()
