"""Defaults of a run that depend on other options: budgets and training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from amc_compress.config.bit_widths import counted_bits, parse_bits
from amc_compress.config.values import LEARNERS, of_how_many
from amc_env.costs.storage import OFF_BITS

if TYPE_CHECKING:
    from amc_compress.config.run_config import RunConfig

# Those of quantized networks are the learners' own, see ``training_defaults``.
FLOAT_LEARNING_RATE, FLOAT_WEIGHT_DECAY = 0.02, 5e-4

# Where nothing is decided there is nothing to bound; every network of quantized layers meets this.
_ANY_BUDGET = "mean_bits=1.0"


def own_defaults(config: RunConfig) -> dict[str, Any]:
    """Returns the values that depend on the learner, for options that are not given.

    Deep Compression quantizes weights only, trains what they share, and its first and last layer
    are too small to pay for codebooks of 256 entries.
    """
    deep = config.learner == "deep"
    known = config.learner in LEARNERS
    return {
        "granularity": "tensor" if known and config.quantization == "codebook" else "channel",
        "activation_bits": str(OFF_BITS) if deep else "8",
        "first_last_bits": None if deep else 8,
        "codebook_mode": "clusters" if deep else "both",
    }


def default_budget(config: RunConfig) -> str:
    """Returns half of the MACs, a quarter of the weights, or the middle of what the bits offer."""
    if not (config.quantizes or config.sparsifies):
        return "macs=0.5"
    if config.learner == "deep":
        return "bytes=0.1"
    if not config.quantizes:
        if (n_of_m := of_how_many(config.pattern)) is None:
            return f"density={max(0.25, config.min_density):.4g}"
        # No layer keeps less than that, and those whose inputs are no multiple of M keep all.
        least = n_of_m[0] / n_of_m[1]
        return f"density={max(0.25, 0.9 * least + 0.1):.4g}"
    return _bit_budget(config)


def _bit_budget(config: RunConfig) -> str:
    """A budget in the middle of what the bits offer; 4 bits per weight for 2-8.

    In the middle is the geometric mean. The first and the last layer may be as much as a tenth of
    the network and have more bits than that: then the budget leaves room for them.
    """
    weights = parse_bits("bits", config.weight_bits)
    inputs = parse_bits("bits", config.activation_bits)
    ends = None if config.first_last_bits is None else counted_bits(config.first_last_bits)
    if config.learner == "joint":
        # 15% of the bytes with 4 bits; what weights of more bits take, fewer channels do not.
        size = min(0.15 * max(_middle(weights, ends), 4.0) / 4, 0.5)
        return "macs=0.5" if weights == (OFF_BITS,) else f"bytes={size:.4g},macs=0.5"
    if len(weights) > 1:
        return f"mean_bits={_middle(weights, ends) / 32:.4g}"
    if len(inputs) > 1:
        own = counted_bits(weights[0])
        both = None if ends is None else (own if own > OFF_BITS else ends) * ends / own
        return f"bops={own * _middle(inputs, both) / 1024:.4g}"
    return _ANY_BUDGET


def _middle(bits: Sequence[int], ends: float | None) -> float:
    """Returns bits between the fewest and the most; enough if a tenth of all has ``ends`` bits."""
    low, high = counted_bits(bits[0]), counted_bits(bits[-1])
    room = 0.0 if ends is None else 0.9 * low + 0.1 * ends
    return max(math.sqrt(low * high), room)


def training_defaults(config: RunConfig) -> dict[str, float]:
    """Returns what the fine-tuning takes if nothing is said: as the learners' own ``finetune``."""
    if not config.quantizes:
        return {"learning_rate": FLOAT_LEARNING_RATE, "weight_decay": FLOAT_WEIGHT_DECAY}
    # Not above: torch takes a second to import, and `--help` needs none of it.
    from amc_compress.learners.quantization.codebook.learner import LEARNING_RATES
    from amc_compress.learners.quantization.preparation import quantized_training

    usual = quantized_training(config.seed)
    rate = usual.learning_rate
    if config.quantization == "codebook":
        rate = LEARNING_RATES[config.codebook_mode]
    return {"learning_rate": rate, "weight_decay": usual.weight_decay}
