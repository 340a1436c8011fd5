"""What codes really take on disk once they are entropy-coded: measured, not estimated."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from torch import Tensor, nn

from learners.quantization.calibration import layer_weights
from learners.quantization.packing_sparse import encode
from learners.quantization.quantizer import Quantizer

Fit = Callable[[str, Tensor, Tensor | None, int], Quantizer]
"""``(layer, weights, mask, bits) -> quantizer`` fitted to the weights that count."""


def stored_bits(
    folded: nn.Module, widths: Mapping[str, Iterable[int]], fit: Fit
) -> dict[str, dict[int, float]]:
    """Returns layer -> bits of a code -> bits that a weight which counts takes on disk.

    Centroids are not used equally often, so that k-bit codes take less than k bits (Han et al.
    2016, Sec. 4); the coder's tables are counted in.

    Args:
        folded: The network as it is quantized.
        widths: Layer -> bits of codes to measure.
        fit: Makes a quantizer.
    """
    found: dict[str, dict[int, float]] = {}
    for name, numbers in widths.items():
        weight, mask = layer_weights(folded, name)
        count = weight.numel() if mask is None else int(mask.sum())
        found[name] = {}
        for bits in sorted(numbers) if count else ():
            codes = fit(name, weight, mask, bits).encode(weight)
            kept = codes if mask is None else codes[mask]
            size = len(encode(kept.reshape(-1).cpu().numpy(), None, bits)) - 1  # without the places
            found[name][bits] = 8 * size / count
    return found
