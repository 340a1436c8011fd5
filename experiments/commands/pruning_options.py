"""The options of pruning, for ``amc_compress.commands.options``."""

from __future__ import annotations

from typing import Annotated

import typer

from amc_compress.config.run_config import RunConfig

_CHANNELS = "Channels (--learner channels, group-lasso, remastered, discrimination, joint)"
_SPARSE = "Single weights (--learner sparse, deep, joint --density)"

_DEFAULT = RunConfig()  # where the defaults live


class PruningOptions:
    """Every option of pruning by name, with its type, its help and its default."""

    criterion: Annotated[
        str,
        typer.Option(
            help="With --learner channels and joint: which channels go first: l1, l2, "
            "bn_scale, taylor, geometric_median, lasso, random. The others choose by themselves.",
            rich_help_panel=_CHANNELS,
        ),
    ] = _DEFAULT.criterion
    round_to: Annotated[
        int,
        typer.Option(
            help="Kept channels come in multiples of this (hardware likes 8 and 16).",
            rich_help_panel=_CHANNELS,
        ),
    ] = _DEFAULT.round_to
    min_ratio: Annotated[
        float,
        typer.Option(
            help="Smallest share of channels a layer may keep.", rich_help_panel=_CHANNELS
        ),
    ] = _DEFAULT.min_ratio
    discrimination_stages: Annotated[
        int,
        typer.Option(
            help="With --learner discrimination: layers inside the network that get a loss of "
            "their own, besides the last one.",
            rich_help_panel=_CHANNELS,
        ),
    ] = _DEFAULT.discrimination_stages
    block_steps: Annotated[
        int,
        typer.Option(
            help="With --learner discrimination: training steps before the channels of each stage "
            "are chosen.",
            rich_help_panel=_CHANNELS,
        ),
    ] = _DEFAULT.block_steps

    progressive: Annotated[
        int,
        typer.Option(
            help="Reach the budget in this many stages, with a search and a short fine-tuning in "
            "each; for high ratios. Not with --learner joint.",
            rich_help_panel=_CHANNELS,
        ),
    ] = _DEFAULT.progressive
    stages: Annotated[
        str | None,
        typer.Option(
            help="The same with bounds of your own for the first cost of the budget, e.g. 0.75,0.6 "
            "on the way to macs=0.5; other costs fall in step.",
            show_default=False,
            rich_help_panel=_CHANNELS,
        ),
    ] = None
    stage_epochs: Annotated[
        int,
        typer.Option(
            help="Epochs of fine-tuning from one stage to the next.", rich_help_panel=_CHANNELS
        ),
    ] = _DEFAULT.stage_epochs

    pattern: Annotated[
        str,
        typer.Option(
            help="Weights that become zero together: unstructured (one by one), block4 (squares of "
            "4 x 4; any number), 2:4 (2 of every 4 inputs stay; 4:8 and others).",
            rich_help_panel=_SPARSE,
        ),
    ] = _DEFAULT.pattern
    protocol: Annotated[
        str,
        typer.Option(
            help="With --learner sparse: who spreads the density over the layers: searched "
            "(--agent), or a rule: uniform (the same for all), heuristic (large layers "
            "lose more), global (the smallest weights of all layers go) or normalised (the same, "
            "relative to the root mean square of each layer). A rule takes no episodes.",
            rich_help_panel=_SPARSE,
        ),
    ] = _DEFAULT.protocol
    min_density: Annotated[
        float,
        typer.Option(help="Smallest share of weights a layer may keep.", rich_help_panel=_SPARSE),
    ] = _DEFAULT.min_density
    density: Annotated[
        bool,
        typer.Option(
            "--density",
            help="With --learner joint: decide the density of every layer too, with channels and "
            "bits.",
            rich_help_panel=_SPARSE,
        ),
    ] = False


PRUNING = (
    "criterion", "round_to", "min_ratio", "discrimination_stages", "block_steps", "progressive",
    "stages", "stage_epochs", "pattern",
    "protocol", "min_density", "density",
)  # fmt: skip
