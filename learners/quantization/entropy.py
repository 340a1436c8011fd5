"""What sparse layers of codes really take on disk: measured, not estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from learners.quantization.calibration import layer_weights
from learners.quantization.packing_sparse import encode
from learners.quantization.quantizer import Quantizer

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
