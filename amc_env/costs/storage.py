"""How a quantized network is stored and computed, as far as costs depend on it."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from amc_env.kinds import OFF_BITS as OFF_BITS
from amc_env.validation.checks import check_known, checked

FLOAT_BITS = 32
"""Bits of a number that is not quantized."""

LEGAL_BITS = (2, 3, 4, 5, 6, 7, 8, OFF_BITS)
"""What weights or inputs of a layer may have; the last one leaves them in float32."""

GRANULARITIES = ("tensor", "channel", "split", "group")

ValueBits = Sequence[tuple[float, float]]
"""Points ``(density, bits)``: what one non-zero weight takes on disk, by the layer's density."""


@checked
@dataclass(frozen=True)
class StorageFormat:
    """How the layers of a quantized network are stored and computed, as costs count them.

    Args:
        weight_bits: Layer -> bits of its weights where no decision says so (missing: float32).
        activation_bits: Layer -> bits of its input, likewise.
        granularity: What shares one scale or codebook: ``"tensor"``, ``"channel"`` (one output
            channel), ``"split"`` (``bucket_size`` consecutive weights) or ``"group"``
            (``bucket_size`` consecutive inputs of one output; of a table, columns of one row).
        bucket_size: Weights per bucket when ``"split"`` or ``"group"``.
        bytes_per_bucket: Bytes besides the codes, per bucket of a quantized layer: 4 for a scale,
            5 for scale and zero point.
        bytes_per_channel: Further bytes per output channel of a quantized layer, whatever the
            buckets are: 4 for the scale of a channel that shares the codebook of its layer.
        codebook: Whether every bucket stores ``2 ** bits`` float32 entries as well.
        bytes_per_layer: Bytes per layer that is, or may be, quantized: header entry, range of
            the activations.
        fixed_bytes: Bytes per file: header.
        folded: Norm (a name in ``graph.channel_parameters``) -> layer that it is folded into. Its
            parameters and buffers vanish; the layer has one float32 bias per output channel.
        densities: Layer -> share of its weights that are not zero where no decision says so
            (missing: all). Where densities are decided or given here, the weights of all layers
            are entropy-coded.
        pattern: Of the zeros, as far as it makes them cheaper to tell: ``"unstructured"`` or
            ``"N:M"`` (M up to 8). Blocks of zeros take at most what unstructured ones do.
        value_bits: Layer -> bits (32 for float32) -> what a non-zero weight of so many bits
            really takes in a sparse network, once it is entropy-coded, see
            ``measured_value_bits``. Missing ones count with their full
            bits, float32 with what is usual.

    Raises:
        ValueError: If a number is out of range or the granularity is unknown.
    """

    weight_bits: Mapping[str, float] = field(default_factory=dict)
    activation_bits: Mapping[str, float] = field(default_factory=dict)
    granularity: str = "channel"
    bucket_size: int = 256
    bytes_per_bucket: float = 4.0
    bytes_per_channel: float = 0.0
    codebook: bool = False
    bytes_per_layer: float = 0.0
    fixed_bytes: float = 0.0
    folded: Mapping[str, str] = field(default_factory=dict)
    densities: Mapping[str, float] = field(default_factory=dict)
    pattern: str = "unstructured"
    value_bits: Mapping[str, Mapping[int, ValueBits]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_known("granularity", self.granularity, GRANULARITIES)
        if self.bucket_size < 1:
            raise ValueError(f"Expected a bucket size of at least 1, got {self.bucket_size}.")
        for name in ("bytes_per_bucket", "bytes_per_channel", "bytes_per_layer", "fixed_bytes"):
            number = getattr(self, name)
            if not (math.isfinite(number) and number >= 0.0):
                raise ValueError(f"Expected {name} to be finite and not negative, got {number}.")
        for name in ("weight_bits", "activation_bits"):
            for layer, bits in getattr(self, name).items():
                if not 1.0 <= bits <= FLOAT_BITS:
                    raise ValueError(
                        f"Expected 1 to {FLOAT_BITS} {name} for {layer!r}, got {bits}; "
                        f"{OFF_BITS} and more mean float32."
                    )
        self._check_sparsity()

    def _check_sparsity(self) -> None:
        for layer, density in self.densities.items():
            if not 0.0 < density <= 1.0:
                raise ValueError(
                    f"Expected a density above 0 and up to 1 for {layer!r}, got {density}."
                )
        regular = re.fullmatch(r"([1-9]\d?):([1-8])", self.pattern)
        if self.pattern != "unstructured" and not (
            regular is not None and int(regular[1]) < int(regular[2])
        ):
            raise ValueError(
                f"Expected the pattern 'unstructured' or 'N:M' with N < M <= 8, as in '2:4', got "
                f"{self.pattern!r}."
            )
        for layer, widths in self.value_bits.items():
            for width, points in widths.items():
                if not points or any(
                    not (0.0 <= density <= 1.0 and math.isfinite(bits)) for density, bits in points
                ):
                    raise ValueError(
                        f"Expected value_bits as pairs of a density in [0, 1] and finite bits for "
                        f"{layer!r} and {width} bits, got {points}."
                    )
