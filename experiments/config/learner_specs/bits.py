"""Learners that quantize, and nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

from amc_compress.config.bit_widths import as_choice, counted_bits, parse_bits
from amc_compress.config.learner_specs.base import Images, LearnerSpec
from amc_env.costs.storage import OFF_BITS

# Where nothing is decided there is nothing to bound; every network of quantized layers meets this.
_ANY_BUDGET = "mean_bits=1.0"
_SHARED = ("first_last_bits", "granularity", "bucket_size", "activation_range")


def middle(bits: Sequence[int], ends: float | None) -> float:
    """Returns the geometric mean of the fewest and the most bits.

    Args:
        bits: On offer, ascending.
        ends: Bits of the first and the last layer, which may be as much as a tenth of the network
            and have more: then the mean leaves room for them.
    """
    low, high = counted_bits(bits[0]), counted_bits(bits[-1])
    room = 0.0 if ends is None else 0.9 * low + 0.1 * ends
    return max(math.sqrt(low * high), room)


class UniformSpec(LearnerSpec):
    """Weights and activations become integers."""

    title = "Uniform quantization"
    path = "quantization.uniform.learner:UniformQuantization"
    takes: ClassVar[tuple[str, ...]] = (
        *_SHARED,
        "group_size",
        "weight_range",
        "rounding",
        "act_order",
        "scale_type",
        "learned_steps",
    )
    quantization = "uniform"

    @property
    def weights(self) -> tuple[int, ...]:
        """Bits of weights."""
        return parse_bits("--weight-bits", self.options.weight_bits)

    @property
    def inputs(self) -> tuple[int, ...]:
        """Bits of activations."""
        return parse_bits("--activation-bits", self.options.activation_bits)

    @property
    def ends(self) -> float | None:
        """Bits that costs count for the first and the last layer."""
        bits = self.options.first_last_bits
        return None if bits is None else counted_bits(bits)

    @property
    def decides(self) -> bool:
        """Whether an agent has a choice: bits that are the same everywhere leave it none."""
        return len(self.weights) > 1 or len(self.inputs) > 1

    def default_budget(self) -> str:
        """Returns what is in the middle of what the bits offer; 4 bits per weight for 2-8."""
        if len(self.weights) > 1:
            return f"mean_bits={middle(self.weights, self.ends) / 32:.4g}"
        if len(self.inputs) > 1:
            own, ends = counted_bits(self.weights[0]), self.ends
            both = None if ends is None else (own if own > OFF_BITS else ends) * ends / own
            return f"bops={own * middle(self.inputs, both) / 1024:.4g}"
        return _ANY_BUDGET

    def training_defaults(self) -> dict[str, float]:
        """Returns the quantizer's own."""
        from amc_compress.learners.quantization.preparation import quantized_training

        usual = quantized_training()
        return {
            "learning_rate": self.rate(usual.learning_rate),
            "weight_decay": usual.weight_decay,
        }

    def own_options(self) -> dict[str, Any]:
        """Returns how many bits, and how values are rounded to them."""
        bits = {"weight_bits": as_choice(self.weights), "activation_bits": as_choice(self.inputs)}
        return super().own_options() | bits | self._rounding()

    def _rounding(self) -> dict[str, Any]:
        return {"symmetric": not self.options.affine_weights}

    def _keywords(self, data: Images, progress: bool) -> dict[str, Any]:
        # Only cut layers are reconstructed: here there is nothing to repair that way.
        proxy = "recalibration" if "recalibration" in self.options.proxy else "none"
        return super()._keywords(data, progress) | {"proxy": proxy}

    def fixed_choice(self) -> str:
        """Returns ``"4-bit weights, 8-bit activations"``."""
        chosen = {"weights": self.weights, "activations": self.inputs}
        return ", ".join(
            f"float {what}" if bits[0] == OFF_BITS else f"{bits[0]}-bit {what}"
            for what, bits in chosen.items()
        )


class CodebookSpec(UniformSpec):
    """Weights share a few learned values."""

    title = "Codebook quantization"
    path = "quantization.codebook.learner:CodebookQuantization"
    takes = _SHARED
    quantization = "codebook"

    def training_defaults(self) -> dict[str, float]:
        """Returns the rate of what is trained of a codebook."""
        from amc_compress.learners.quantization.codebook.learner import LEARNING_RATES

        rate = LEARNING_RATES[self.options.codebook_mode]
        return super().training_defaults() | {"learning_rate": self.rate(rate)}

    def _rounding(self) -> dict[str, Any]:
        return {"mode": self.options.codebook_mode, "init": self.options.codebook_init}


QUANTIZERS = {"uniform": UniformSpec, "codebook": CodebookSpec}
