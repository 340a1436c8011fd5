"""The options of quantization."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import option
from amc_compress.config.texts import NOT_GIVEN, bits_or_none
from amc_compress.config.values import QUANTIZERS

_ALL = ("deep", *QUANTIZERS)  # --learner joint reads those of its --quantizer
_CODEBOOKS = ("deep", "codebook")

_bits = functools.partial(
    option,
    stage="search",
    panel="Bits (--learner uniform, codebook, deep, joint)",
    learners=_ALL,
)


@dataclass(frozen=True)
class BitOptions:
    """How many bits, and how values are rounded to them."""

    weight_bits: str = _bits(
        "2-8",
        "Bits per weight: 2-8 or 2,4,8 are decided layer by layer within the budget; one "
        "number, e.g. 4, is fixed for all layers. 16 leaves weights in float32.",
    )
    activation_bits: str = _bits(
        "",
        "Bits of what a layer reads, written as --weight-bits. 16 is off. Ranges are "
        "calibrated once and then static. Not given: 8; with --learner deep 16.",
    )
    first_last_bits: int | None = _bits(
        NOT_GIVEN,
        "Fixed bits of the first and the last layer, the most sensitive ones, unless they are "
        "tables; none treats them like the others. Not given: 8; with --learner deep none.",
        read=bits_or_none,
        kind=str,
    )
    granularity: str = _bits(
        "",
        "Weights that share one scale (or codebook): those of a layer (tensor), of an "
        "output channel (channel), of a bucket of --bucket-size (split), or of --group-size "
        "consecutive inputs of an output (group; uniform quantizer only). Not given: channel, "
        "for codebooks tensor.",
        choices=("tensor", "channel", "split", "group"),
    )
    bucket_size: int = _bits(256, "Weights per bucket with --granularity split.", least=2)
    group_size: int = _bits(
        128,
        "Weights per group with --granularity group: 32, 64 and 128 are usual; uniform quantizer "
        "only.",
        learners=("uniform",),
        least=2,
    )
    activation_range: str = _bits(
        "mse",
        "Where activations are clipped: minmax (nowhere), percentile, mse (least squared "
        "error) or kl (least lost information).",
        choices=("minmax", "percentile", "mse", "kl"),
    )
    weight_range: str = _bits(
        "mse",
        "The same for weights, or lsq (steps start at 2 <|w|> / sqrt(largest integer); "
        "made for --learned-steps); uniform quantizer only.",
        learners=("uniform",),
        choices=("minmax", "percentile", "mse", "kl", "lsq"),
    )
    affine_weights: bool = _bits(
        False,
        "Give weights a zero point, for layers whose weights lie to one side of 0; "
        "uniform quantizer only.",
        learners=("uniform",),
    )
    rounding: str = _bits(
        "nearest",
        "How weights are rounded: nearest, or gptq (what rounding one input's weights does to the "
        "outputs is taken up by those of the inputs after it; from the calibration data, each "
        "layer alone); uniform quantizer only.",
        learners=("uniform",),
        choices=("nearest", "gptq"),
    )
    act_order: bool = _bits(
        False,
        "With --rounding gptq: round the weights of the largest inputs first; groups then have "
        "the scales of the original weights.",
        learners=("uniform",),
    )
    scale_type: str = _bits(
        "auto",
        "What the scales of weights are rounded to and stored as: auto is float16 with "
        "--granularity group, unless --learned-steps trains them, else float32; uniform quantizer "
        "only.",
        learners=("uniform",),
        choices=("auto", "float32", "float16", "bfloat16"),
    )
    learned_steps: bool = _bits(
        False,
        "Let the fine-tuning learn the step sizes too (LSQ); uniform quantizer only.",
        learners=("uniform",),
    )
    codebook_mode: str = _bits(
        "",
        "What the fine-tuning of a codebook moves: weights, clusters (its entries), both. "
        "Not given: both; with --learner deep clusters.",
        learners=_CODEBOOKS,
        choices=("weights", "clusters", "both"),
    )
    codebook_init: str = _bits(
        "kmeans",
        "Where the entries of a codebook begin: kmeans, quantile or uniform.",
        learners=_CODEBOOKS,
        choices=("kmeans", "quantile", "uniform"),
    )
    quantizer: str = _bits(
        "uniform",
        "With --learner joint: uniform (integers, runs fast) or codebook (smallest).",
        learners=("joint",),
        choices=QUANTIZERS,
    )
