"""The options of quantization, for ``amc_compress.commands.options``."""

from __future__ import annotations

from typing import Annotated

import typer

from amc_compress.config.run_config import RunConfig

_BITS = "Bits (--learner uniform, codebook, deep, joint)"

_DEFAULT = RunConfig()  # where the defaults live


class BitOptions:
    """Every option of quantization by name, with its type, its help and its default."""

    weight_bits: Annotated[
        str,
        typer.Option(
            help="Bits per weight: 2-8 or 2,4,8 are decided layer by layer within the budget; one "
            "number, e.g. 4, is fixed for all layers. 16 leaves weights in float32.",
            rich_help_panel=_BITS,
        ),
    ] = _DEFAULT.weight_bits
    activation_bits: Annotated[
        str,
        typer.Option(
            help="Bits of what a layer reads, written as --weight-bits. 16 is off. Ranges are "
            "calibrated once and then static. Not given: 8; with --learner deep 16.",
            show_default=False,
            rich_help_panel=_BITS,
        ),
    ] = ""
    first_last_bits: Annotated[
        str,
        typer.Option(
            help="Fixed bits of the first and the last layer, the most sensitive ones; none "
            "treats them like the others. Not given: 8; with --learner deep none.",
            show_default=False,
            rich_help_panel=_BITS,
        ),
    ] = ""
    granularity: Annotated[
        str,
        typer.Option(
            help="Weights that share one scale (or codebook): those of a layer (tensor), of an "
            "output channel (channel), or of a bucket of --bucket-size (split). Not given: "
            "channel, for codebooks tensor.",
            show_default=False,
            rich_help_panel=_BITS,
        ),
    ] = ""
    bucket_size: Annotated[
        int,
        typer.Option(help="Weights per bucket with --granularity split.", rich_help_panel=_BITS),
    ] = _DEFAULT.bucket_size
    activation_range: Annotated[
        str,
        typer.Option(
            help="Where activations are clipped: minmax (nowhere), percentile, mse (least squared "
            "error) or kl (least lost information).",
            rich_help_panel=_BITS,
        ),
    ] = _DEFAULT.activation_range
    weight_range: Annotated[
        str,
        typer.Option(
            help="The same for weights, or lsq (steps start at 2 <|w|> / sqrt(largest integer); "
            "made for --learned-steps); uniform quantizer only.",
            rich_help_panel=_BITS,
        ),
    ] = _DEFAULT.weight_range
    affine_weights: Annotated[
        bool,
        typer.Option(
            "--affine-weights",
            help="Give weights a zero point, for layers whose weights lie to one side of 0; "
            "uniform quantizer only.",
            rich_help_panel=_BITS,
        ),
    ] = False
    learned_steps: Annotated[
        bool,
        typer.Option(
            "--learned-steps",
            help="Let the fine-tuning learn the step sizes too (LSQ); uniform quantizer only.",
            rich_help_panel=_BITS,
        ),
    ] = False
    codebook_mode: Annotated[
        str,
        typer.Option(
            help="What the fine-tuning of a codebook moves: weights, clusters (its entries), both. "
            "Not given: both; with --learner deep clusters.",
            show_default=False,
            rich_help_panel=_BITS,
        ),
    ] = ""
    codebook_init: Annotated[
        str,
        typer.Option(
            help="Where the entries of a codebook begin: kmeans, quantile or uniform.",
            rich_help_panel=_BITS,
        ),
    ] = _DEFAULT.codebook_init
    quantizer: Annotated[
        str,
        typer.Option(
            help="With --learner joint: uniform (integers, runs fast) or codebook (smallest).",
            rich_help_panel=_BITS,
        ),
    ] = _DEFAULT.quantizer


BITS = (
    "weight_bits", "activation_bits", "first_last_bits", "granularity", "bucket_size",
    "activation_range", "weight_range", "affine_weights", "learned_steps", "codebook_mode",
    "codebook_init", "quantizer",
)  # fmt: skip
