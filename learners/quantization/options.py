"""What every kind of quantization is told."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace

from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.quantization.decisions import BitChoice, Bits, bit_choice, check_bits
from amc_compress.learners.quantization.preparation import QUANTIZED_GRADIENT_CLIP
from amc_compress.learners.quantization.uniform.quantizer import check_granularity
from amc_compress.learners.quantization.uniform.ranges import check_rule
from amc_env.costs.storage import StorageFormat
from amc_env.validation.checks import check_known, checked

PROXIES = ("none", "recalibration")


@checked
@dataclass(frozen=True, kw_only=True)
class QuantizationOptions(CandidateOptions):
    """What quantization is told; see ``CandidateOptions`` for what all learners are.

    Attributes:
        proxy: ``"recalibration"`` matches the moments of every layer's output to the float
            network's, for candidates and in ``compress``; ``"none"`` does not.
        weight_bits: Bits of weights, 2 to 8 or 16 (float). A sequence is decided layer by layer,
            one number is fixed for all.
        activation_bits: Bits of every layer's input, likewise.
        first_last_bits: Bits of the first and the last layer, which are then not decided, unless
            they are tables; ``None`` treats them like the others. What is float everywhere else is
            float there too.
        granularity: What shares a scale or codebook of weights: ``"tensor"``, ``"channel"`` (an
            output channel), ``"split"`` (``bucket_size`` consecutive weights), or ``"group"``
            (``group_size`` consecutive inputs of an output channel; of a table, columns of a row).
        bucket_size: Weights per bucket of ``"split"``.
        group_size: Weights per group of ``"group"``; the last group of a row may be shorter.
        activation_range: Name in ``RANGE_RULES``: how the range of activations is found.
    """

    proxy: str = "recalibration"
    weight_bits: Bits = (2, 3, 4, 5, 6, 7, 8)
    activation_bits: Bits = 8
    first_last_bits: int | None = 8
    granularity: str = "channel"
    bucket_size: int = 256
    group_size: int = 128
    activation_range: str = "mse"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bits("weight_bits", self.weight_bits)
        check_bits("activation_bits", self.activation_bits)
        if self.first_last_bits is not None:
            check_bits("first_last_bits", self.first_last_bits)
        check_granularity(self.granularity, self.bucket_size)
        if self.group_size < 2:
            raise ValueError(f"Expected group_size >= 2, got {self.group_size}.")
        check_rule(self.activation_range)

    def repairs(self) -> Proxy:
        """Returns what a candidate gets; the gradients of its SGD steps are limited.

        Raises:
            ValueError: If there is no such proxy, or the steps are negative.
        """
        check_known("proxy", self.proxy, PROXIES)
        return replace(super().repairs(), gradient_clip=QUANTIZED_GRADIENT_CLIP)

    @property
    def per_bucket(self) -> int:
        """Weights per bucket or group, whichever the granularity has."""
        return self.group_size if self.granularity == "group" else self.bucket_size

    def choice(
        self,
        sizes: Mapping[str, int],
        float_inputs: Container[str] = (),
        tables: Container[str] = (),
    ) -> BitChoice:
        """Returns what is decided, and what is fixed.

        Args:
            sizes: Layer -> number of weights, in network order.
            float_inputs: Those of which only the weights get bits.
            tables: Those of them that are tables.
        """
        return bit_choice(
            sizes,
            self.weight_bits,
            self.activation_bits,
            self.first_last_bits,
            float_inputs,
            tables,
        )

    def storage(self, choice: BitChoice, folded: Mapping[str, str]) -> StorageFormat:
        """Returns how layers are stored, without the file's header: a scale for every bucket.

        Args:
            choice: Bits of the layers.
            folded: Norm -> layer that it is folded into.
        """
        return StorageFormat(
            weight_bits={name: float(bits) for name, bits in choice.fixed_weights.items()},
            activation_bits={name: float(bits) for name, bits in choice.fixed_inputs.items()},
            granularity=self.granularity,
            bucket_size=self.per_bucket,
            folded=folded,
        )
