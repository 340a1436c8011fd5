"""Ready-made tasks for ``gymnasium.make``; their keyword arguments are plain JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from amc_compress.data import DataSplits, load_data
from amc_compress.learners import ChannelPruning, Learner, joint_compression
from amc_compress.learners.joint.options import quantizer_named
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.models import load_weights, make_model
from amc_env import CompressionEnv
from amc_env.budgets.budget import BudgetLike
from amc_env.env import DEFAULT_ACTION_MAPPING

SplitKind = Literal["random", "tail"]

DIGITS_WEIGHTS = "weights/digitsnet.safetensors"

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
"""What the weights of a layer may be decided to have, where a task does not say."""


@dataclass(frozen=True)
class TaskSettings:
    """What every task takes besides its budget.

    Args:
        model: Name from ``amc_compress.models`` or ``package.module:factory``.
        data: ``"digits"``, a folder of parquet files, or a hub name.
        weights: Trained weights; None takes those shipped for ``digitsnet`` on ``digits``.
        action: Action mapping, see ``CompressionEnv``.
        reward: Name from ``amc_env.REWARDS``, or ``"package.module:name"``.
        proxy: How a candidate is repaired before it is evaluated.
        finetune_steps: Training steps of a candidate before it is evaluated.
        n_validation: Images that a candidate is evaluated on inside an episode.
        validation_split: ``"random"`` or ``"tail"``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        seed: Draws everything random in the learner; the splits are always the same.
        render_mode: ``"ansi"``, ``"rgb_array"`` or None.
        cost_models: Further costs for budget and reward: name -> ``"package.module:Class"``.
    """

    model: str = "digitsnet"
    data: str = "digits"
    weights: str | None = None
    action: str = DEFAULT_ACTION_MAPPING
    reward: str = "accuracy"
    proxy: str = "reconstruction+recalibration"
    finetune_steps: int = 0
    n_validation: int = 3000
    validation_split: SplitKind = "random"
    precision: str = "auto"
    seed: int = 0
    render_mode: str | None = None
    cost_models: Mapping[str, str] | None = None

    def build(
        self, learner: Callable[..., Learner], budget: BudgetLike, **own: Any
    ) -> CompressionEnv:
        """Builds the task of a learner.

        Args:
            learner: Its class, or a function that makes one.
            budget: Of the plans.
            own: Options of this learner alone.

        Raises:
            ValueError: If no weights are given for a network that none are shipped for.
        """
        splits = load_data(self.data, seed=self.seed, validation_split=self.validation_split)
        prepared = learner(
            trained_network(self.model, self.data, self.weights, splits),
            splits.calibration.images[:1],
            splits.calibration,
            splits.validation,
            proxy=self.proxy,
            finetune_steps=self.finetune_steps,
            n_validation=self.n_validation,
            precision=self.precision,
            train=splits.train,
            seed=self.seed,
            **own,
        )
        return CompressionEnv(
            prepared,
            budget,
            action=self.action,
            reward=self.reward,
            cost_models=self.cost_models,
            render_mode=self.render_mode,
        )


def make_channels(
    budget: BudgetLike = "macs=0.5", criterion: str = "l1", round_to: int = 8, **options: Any
) -> CompressionEnv:
    """Builds a channel-pruning task for any network, data set and weights file.

    Args:
        budget: ``"macs=0.5"``, ``"macs=0.45:0.5,bytes=0.3"``, ``{"macs": [0.45, 0.5]}``, or
            ``0.5``, which means ``macs=0.5``.
        criterion: How channels are ranked.
        round_to: Kept channels come in multiples of this.
        options: Fields of :class:`TaskSettings`.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for.
    """
    return TaskSettings(**options).build(
        ChannelPruning, budget, criterion=criterion, round_to=round_to
    )


def make_bits(
    budget: BudgetLike = "mean_bits=4/32",
    quantizer: str = "uniform",
    weight_bits: int | Sequence[int] = ALL_BITS,
    activation_bits: int | Sequence[int] = 8,
    quantization: Mapping[str, Any] | None = None,
    **options: Any,
) -> CompressionEnv:
    """Builds a task that decides the bits of every layer, as HAQ does.

    Args:
        budget: ``"mean_bits=4/32"``, ``"bytes=0.15"``, ``"bops=1/64"``, or several of them.
        quantizer: ``"uniform"`` or ``"codebook"``.
        weight_bits: Bits to choose from, or one number for all layers; 16 leaves a layer alone.
        activation_bits: The same for the inputs of the layers.
        quantization: Any other option of the learner, say ``{"granularity": "tensor"}``.
        options: Fields of :class:`TaskSettings`; ``proxy`` is ``"recalibration"`` if not given.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or the
            quantizer is unknown.
    """
    return TaskSettings(**{"proxy": "recalibration"} | options).build(
        quantizer_named(quantizer),
        budget,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        **dict(quantization or {}),
    )


def make_density(
    budget: BudgetLike = "density=0.25",
    pattern: str = "unstructured",
    min_density: float = 0.02,
    **options: Any,
) -> CompressionEnv:
    """Builds a task that decides how many weights of every layer stay.

    Args:
        budget: ``"density=0.25"`` (a share of all weights), ``"bytes=0.2"``, or both.
        pattern: ``"unstructured"``, ``"block4"``, ``"2:4"`` or the like.
        min_density: The smallest share of its weights that a layer may keep.
        options: Fields of :class:`TaskSettings`.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or there is
            no such pattern.
    """
    return TaskSettings(**options).build(
        WeightSparsification, budget, pattern=pattern, min_density=min_density
    )


def make_joint(
    budget: BudgetLike = "macs=0.5,bytes=0.15",
    quantizer: str = "uniform",
    weight_bits: int | Sequence[int] = ALL_BITS,
    activation_bits: int | Sequence[int] = 8,
    criterion: str = "l1",
    round_to: int = 8,
    pruning: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    **options: Any,
) -> CompressionEnv:
    """Builds a task that decides channels and bits in one episode, layer by layer.

    Args:
        budget: As in :func:`make_channels` and :func:`make_bits`.
        quantizer: As in :func:`make_bits`.
        weight_bits: As in :func:`make_bits`.
        activation_bits: As in :func:`make_bits`.
        criterion: As in :func:`make_channels`.
        round_to: As in :func:`make_channels`.
        pruning: Any other option of channel pruning, say ``{"min_ratio": 0.2}``.
        quantization: Any other option of the quantizing learner.
        options: Fields of :class:`TaskSettings`.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or the
            quantizer is unknown.
    """
    quantizer_named(quantizer)
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    return TaskSettings(**options).build(
        joint_compression,
        budget,
        quantizer=quantizer,
        pruning={"criterion": criterion, "round_to": round_to, **(pruning or {})},
        quantization={**bits, **(quantization or {})},
    )


def trained_network(model: str, data: str, weights: str | None, splits: DataSplits) -> nn.Module:
    """Returns a trained network for these data, in eval mode.

    Args:
        model: Name from ``amc_compress.models`` or ``package.module:factory``.
        data: The name under which the data were loaded.
        weights: The weights file; None takes those shipped for ``digitsnet`` on ``digits``.
        splits: The data.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for.
    """
    channels, side, _ = splits.image_shape
    with torch.random.fork_rng(devices=[]):  # its weights are replaced; the global RNG state stays
        network = make_model(
            model, n_classes=splits.n_classes, in_channels=channels, image_size=side
        )
    if weights is not None:
        load_weights(network, Path(weights))
    elif (model, data) == ("digitsnet", "digits"):
        with as_file(files("amc_compress") / DIGITS_WEIGHTS) as path:
            load_weights(network, path)
    else:
        raise ValueError(
            f"Expected weights=FILE for {model!r} on {data!r}: only digitsnet on digits is shipped "
            f"trained. `amc train --model {model} --data {data} --out DIR` makes such a file."
        )
    return network.eval()
