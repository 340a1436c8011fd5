"""The tasks of a comparison by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from amc_compress.comparison.task import RECORDED, ComparisonTask

_CIFAR: dict[str, Any] = {
    "validation_split": "tail",  # the rows that the checkpoints were not adapted on
    "n_validation": 2000,
    "precision": "auto",
}


_SENTENCES: dict[str, Any] = {"task": "embedding", "n_validation": 128, "precision": "bf16"}

_IMAGES: dict[str, Any] = {
    "task": "classification",
    "n_validation": 500,
    "optimizer": "adamw",
}

_HEADS: dict[str, Any] = {"learner": "channels", "criterion": "output_energy", "round_to": 32}

_ROUNDED: dict[str, Any] = {
    "learner": "uniform",
    "activation_bits": "16",
    "first_last_bits": None,  # the table of words is half of the network
    "rounding": "gptq",
    "granularity": "group",
    "proxy": "none",  # a third of the time of an evaluation with matched sums
}

_HEADS_ROUNDED: dict[str, Any] = {
    **_HEADS,
    **_ROUNDED,
    "learner": "joint",
    "proxy": "reconstruction",
    # Every evaluation rounds the cut layers anew: by least squares that takes 8 seconds.
    "rounding": "nearest",
    "weight_range": "minmax",
}


def _searched(
    recipe: str,
    of: str,
    network: str,
    data: str,
    usual: Mapping[str, Any],
    folder: str = "",
) -> Callable[[str, str, str, Mapping[str, Any]], ComparisonTask]:
    """Returns what makes the tasks of a recipe's network: of name, title, budget and options."""

    def task(name: str, title: str, budget: str, options: Mapping[str, Any]) -> ComparisonTask:
        return ComparisonTask(
            f"{recipe.rpartition('.')[2]}-{name}",
            f"{title} of a {of}",
            "searched",
            budget,
            f"amc_compress.recipes.{recipe}:{network}",
            f"amc_compress.recipes.{recipe}:{data}",
            {**usual, **options},
            folder=folder,
        )

    return task


_TOKENS: dict[str, Any] = {
    "task": "language-modelling",
    "n_validation": 8,  # blocks of 256 tokens
    "precision": "bf16",
    "optimizer": "adamw",
}

_BRANCHES: dict[str, Any] = {
    "learner": "channels",
    "depth": True,
    "min_ratio": 1.0,
    "proxy": "none",  # fitting later branches takes ten times as long as an evaluation
}

_CUT = {**_HEADS, "proxy": "reconstruction"}

_THINNED = {**_CUT, "depth": True}

# 320 inputs are no multiple of a group. The table of the language model is its head too, stays in
# float and is 7% of the weights: 6, 5 and 4.5 bits on average are 4.1, 3.1 and 2.5 of the others.
_CODED = {**_ROUNDED, "granularity": "channel"}


_THINNED_ROUNDED = {**_HEADS_ROUNDED, "granularity": "channel", "depth": True}

_minilm = _searched(
    "wheels.minilm", "sentence embedder, MiniLM", "network", "sentences", _SENTENCES
)
_gpt = _searched("trained.gpt", "small language model", "network", "splits", _TOKENS, "gpt")
_vit = _searched("trained.vit", "small vision transformer", "network", "images", _IMAGES, "vit")


def _recorded(name: str, title: str) -> ComparisonTask:
    return ComparisonTask(
        f"{name}{RECORDED}", f"{title}, recorded", "recorded", env_id=f"amc/{name}-recorded-v0"
    )


TASKS: dict[str, ComparisonTask] = {
    task.name: task
    for task in (
        ComparisonTask(
            "digits-channels",
            "channels of a small network on 8 x 8 digits, 30% of the MACs",
            "channels",
            "macs=0.3",
            options={"round_to": 2, "precision": "fp32"},
        ),
        ComparisonTask(
            "resnet20-channels",
            "channels of ResNet-20 on CIFAR-10, 50% of the MACs",
            "channels",
            "macs=0.5",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "criterion": "lasso"},
        ),
        ComparisonTask(
            "resnet20-channels-30",
            "channels of ResNet-20 on CIFAR-10, 30% of the MACs",
            "channels",
            "macs=0.3",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "criterion": "lasso"},
        ),
        ComparisonTask(
            "mobilenetv2-channels",
            "channels of MobileNet V2 on CIFAR-10, 50% of the MACs",
            "channels",
            "macs=0.5",
            "mobilenet_v2_fast",
            "cifar10",
            {**_CIFAR, "round_to": 8},
        ),
        ComparisonTask(
            "resnet20-bits",
            "bits of the weights of ResNet-20 on CIFAR-10, 4 on average",
            "bits",
            "mean_bits=4/32",
            "resnet20",
            "cifar10",
            {**_CIFAR, "activation_bits": 16},
        ),
        ComparisonTask(
            "resnet20-joint",
            "channels and bits of ResNet-20 on CIFAR-10, 50% of the MACs, 10% of the bytes",
            "joint",
            "macs=0.5,bytes=0.1",
            "resnet20",
            "cifar10",
            {**_CIFAR, "round_to": 4, "activation_bits": 16},
        ),
        _minilm("channels-70", "heads and width, 70% of the MACs,", "macs=0.7", _HEADS),
        _minilm("channels-50", "heads and width, 50% of the MACs,", "macs=0.5", _HEADS),
        _minilm("channels-35", "heads and width, 35% of the MACs,", "macs=0.35", _HEADS),
        _minilm("bits-4", "bits of the weights, 4 on average,", "mean_bits=4/32", _ROUNDED),
        _minilm("bits-3", "bits of the weights, 3 on average,", "mean_bits=3/32", _ROUNDED),
        _minilm("bits-2.5", "bits of the weights, 2.5 on average,", "mean_bits=2.5/32", _ROUNDED),
        _minilm(
            "joint",
            "heads, width and bits, 50% of the MACs, 12% of the bytes,",
            "macs=0.5,bytes=0.12",
            _HEADS_ROUNDED,
        ),
        _gpt("channels-70", "heads and width, 70% of the MACs,", "macs=0.7", _CUT),
        _gpt("channels-50", "heads and width, 50% of the MACs,", "macs=0.5", _CUT),
        _gpt("channels-35", "heads and width, 35% of the MACs,", "macs=0.35", _CUT),
        _gpt("bits-6", "bits of the weights, 6 on average,", "mean_bits=6/32", _CODED),
        _gpt("bits-5", "bits of the weights, 5 on average,", "mean_bits=5/32", _CODED),
        _gpt("bits-4.5", "bits of the weights, 4.5 on average,", "mean_bits=4.5/32", _CODED),
        _gpt("depth", "residual branches, 75% of the MACs,", "macs=0.75", _BRANCHES),
        _gpt("depth-50", "residual branches, 50% of the MACs,", "macs=0.5", _BRANCHES),
        _gpt(
            "joint",
            "heads, width, depth and bits, 50% of the MACs, 12% of the bytes,",
            "macs=0.5,bytes=0.12",
            _THINNED_ROUNDED,
        ),
        _vit("channels-50", "heads, width and depth, 50% of the MACs,", "macs=0.5", _THINNED),
        _vit("bits-4", "bits of the weights, 4 on average,", "mean_bits=4/32", _CODED),
        _vit("bits-3", "bits of the weights, 3 on average,", "mean_bits=3/32", _CODED),
        _vit(
            "joint",
            "heads, width, depth and bits, 50% of the MACs, 12% of the bytes,",
            "macs=0.5,bytes=0.12",
            _THINNED_ROUNDED,
        ),
        _recorded("digits-channels", "channels of a small network, 30% of the MACs"),
        _recorded("resnet20-channels", "channels of ResNet-20, 50% of the MACs"),
        _recorded("resnet20-channels-30", "channels of ResNet-20, 30% of the MACs"),
        _recorded("mobilenetv2-channels", "channels of MobileNet V2, 50% of the MACs"),
        _recorded("resnet20-bits", "bits of the weights of ResNet-20, 4 on average"),
        _recorded("resnet20-joint", "channels and bits of ResNet-20"),
        _recorded("gpt-depth", "residual branches of a small language model, 75% of the MACs"),
        _recorded("minilm-bits-3", "bits of the weights of a sentence embedder, 3 on average"),
    )
}
"""Name -> task."""
