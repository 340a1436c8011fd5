"""Measured sizes on disk of sparse layers of codes."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.layers.structure import layer_weights
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.packing.sparse import encode
from amc_compress.learners.tasks.inputs import Inputs
from amc_env.plan import CompressionPlan

Fit = Callable[[str, Tensor, Tensor | None, int], Quantizer]
"""``(layer, weights, mask, bits) -> quantizer`` fitted to the weights that count."""


def stored_bytes(
    folded: nn.Module, widths: Mapping[str, Iterable[int]], fit: Fit
) -> dict[str, dict[int, int]]:
    """Returns layer -> bits of a code -> bytes of its weights in a packed file.

    Centroids are not used equally often, so that k-bit codes take less than k bits (Han et al.
    2016, Sec. 4). Places of the weights that count and tables of the coder are counted in.

    Args:
        folded: The network as it is quantized.
        widths: Layer -> bits of codes to measure.
        fit: Makes a quantizer.
    """
    found: dict[str, dict[int, int]] = {}
    for name, numbers in widths.items():
        weight, mask = layer_weights(folded, name)
        places = None if mask is None else mask.cpu().numpy()
        found[name] = {}
        for bits in sorted(numbers):
            codes = fit(name, weight, mask, bits).encode(weight)
            found[name][bits] = len(encode(codes.cpu().numpy(), places, bits))
    return found


def header_bytes(
    network: nn.Module,
    plan: CompressionPlan,
    tensors: float,
    *,
    kept: Mapping[str, Tensor] | None = None,
    example_input: Inputs | None = None,
    part: str | None = None,
) -> float:
    """Returns the bytes of a packed file that are no tensor's: header and activation ranges.

    They hardly depend on the plan, so that measuring one network is enough.

    Args:
        network: The network of ``plan``.
        plan: Bits, and whatever else is decided.
        tensors: Bytes that the cost counts for the tensors of that plan.
        kept: Channel group -> units that stay, if the network was sliced.
        example_input: Stored with a sliced network.
        part: Likewise: the submodule that was compressed.

    Warns:
        UserWarning: If the file is smaller than its tensors were said to be; the header then
            counts nothing, and costs promise too much.
    """
    more: dict[str, Any] = {"example_input": example_input, "part": part}
    size = len(packed_bytes(network, kept=kept, plan=plan, **more))
    if size < tensors:
        warnings.warn(
            f"Expected a packed file of more than the {tensors:.0f} bytes counted for its tensors, "
            f"got one of {size}: the storage format counts what the file does not hold, and the "
            f"bytes cost is too high by {tensors / size - 1:.1%} or more.",
            stacklevel=2,
        )
    return float(max(round(size - tensors), 0))
