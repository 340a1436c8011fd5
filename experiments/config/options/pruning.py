"""The options of learners that cut channels, or set single weights to zero."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from amc_compress.config.option import option
from amc_compress.config.texts import numbers
from amc_compress.config.values import CHANNEL_LEARNERS, PROTOCOLS

_channels = functools.partial(
    option,
    stage="search",
    panel="Channels (--learner channels, group-lasso, remastered, discrimination, joint)",
)
_weights = functools.partial(
    option, stage="search", panel="Single weights (--learner sparse, deep, joint --density)"
)
_CUTTING = (*CHANNEL_LEARNERS, "joint")
_SPARSE = ("sparse", "deep", "joint")


@dataclass(frozen=True)
class PruningOptions:
    """Which channels go, in which stages; which weights become zero."""

    criterion: str = _channels(
        "l1",
        "With --learner channels and joint: which channels go first: l1, l2, "
        "bn_scale, taylor, geometric_median, lasso, wanda, output_energy, random. The others "
        "choose by themselves.",
        learners=("channels", "joint"),
    )
    round_to: int = _channels(
        8,
        "Kept channels come in multiples of this (hardware likes 8 and 16).",
        learners=_CUTTING,
        least=1,
    )
    min_ratio: float = _channels(
        0.0,
        "Smallest share of channels a layer may keep; with 1 channels are not decided about: "
        "--depth --min-ratio 1 leaves out residual branches alone.",
        learners=_CUTTING,
        least=0,
        most=1,
    )
    depth: bool = _channels(
        False,
        "Decide which residual branches are there, too (blocks, or the attention and the MLP "
        "halves of transformers); with --learner joint next to channels, bits and densities.",
        learners=("channels", "joint"),
    )
    depth_scores: str = _channels(
        "measured",
        "With --depth: what agents are told of branches before they search: measured (the loss "
        "without each one in turn) or influence (how much each one turns what passes through, in "
        "one run; for many branches).",
        learners=("channels", "joint"),
        choices=("measured", "influence"),
    )
    discrimination_stages: int = _channels(
        3,
        "With --learner discrimination: layers inside the network that get a loss of "
        "their own, besides the last one.",
        learners=("discrimination",),
        least=1,
    )
    block_steps: int = _channels(
        150,
        "With --learner discrimination: training steps before the channels of each stage "
        "are chosen.",
        learners=("discrimination",),
        least=1,
    )
    progressive: int = _channels(
        1,
        "Reach the budget in this many stages, with a search and a short fine-tuning in "
        "each; for high ratios. Not with --learner joint.",
        learners=CHANNEL_LEARNERS,
        least=1,
    )
    stages: tuple[float, ...] = _channels(
        (),
        "The same with bounds of your own for the first cost of the budget, e.g. 0.75,0.6 "
        "on the way to macs=0.5; other costs fall in step.",
        learners=CHANNEL_LEARNERS,
        read=numbers,
    )
    stage_epochs: int = _channels(
        3,
        "Epochs of fine-tuning from one stage to the next.",
        learners=CHANNEL_LEARNERS,
        least=0,
    )

    pattern: str = _weights(
        "unstructured",
        "Weights that become zero together: unstructured (one by one), block4 (squares of "
        "4 x 4; any number), 2:4 (2 of every 4 inputs stay; 4:8 and others).",
        learners=_SPARSE,
    )
    repair: str = _weights(
        "least-squares",
        "With --pattern unstructured or 2:4: least-squares (the largest weights stay, and are "
        "fitted again) or sparsegpt (in one sweep over a layer's inputs those weights go that "
        "its outputs miss least, and the others take up what is lost).",
        learners=_SPARSE,
        choices=("least-squares", "sparsegpt"),
    )
    protocol: str = _weights(
        "searched",
        "With --learner sparse: what spreads the density over the layers: searched "
        "(--agent), or a rule: uniform (the same for all), heuristic (large layers "
        "lose more), global (the smallest weights of all layers go) or normalised (the same, "
        "relative to the root mean square of each layer). A rule takes no evaluations.",
        learners=("sparse",),
        choices=PROTOCOLS,
    )
    min_density: float = _weights(
        0.02,
        "Smallest share of weights a layer may keep.",
        learners=_SPARSE,
        above=0,
        most=1,
    )
    density: bool = _weights(
        False,
        "With --learner joint: decide the density of every layer too, with channels and bits.",
        learners=("joint",),
    )
