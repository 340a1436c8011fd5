"""Ready-made tasks for ``gymnasium.make``; their keyword arguments are plain JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from amc_compress.data import DataSplits, load_data
from amc_compress.learners import ChannelPruning, joint_compression
from amc_compress.learners.joint.prepare import quantizer_named
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.models import load_weights, make_model
from amc_env import CompressionEnv
from amc_env.budgets.budget import BudgetLike
from amc_env.env import DEFAULT_ACTION_MAPPING

SplitKind = Literal["random", "tail"]

DIGITS_WEIGHTS = "weights/digitsnet.safetensors"

ALL_BITS = (2, 3, 4, 5, 6, 7, 8)
"""What the weights of a layer may be decided to have, where a task does not say."""


def make_channels(
    model: str = "digitsnet",
    data: str = "digits",
    weights: str | None = None,
    budget: BudgetLike = "macs=0.5",
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    proxy: str = "reconstruction+recalibration",
    finetune_steps: int = 0,
    criterion: str = "l1",
    round_to: int = 8,
    n_validation: int = 3000,
    validation_split: SplitKind = "random",
    precision: str = "auto",
    seed: int = 0,
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
) -> CompressionEnv:
    """Builds a channel-pruning task for any network, data set and weights file.

    Args:
        model: Name from ``amc_compress.models`` or ``package.module:factory``.
        data: ``"digits"``, a folder of parquet files, or a hub name.
        weights: Trained weights; None takes those shipped for ``digitsnet`` on ``digits``.
        budget: ``"macs=0.5"``, ``"macs=0.45:0.5,bytes=0.3"``, ``{"macs": [0.45, 0.5]}``, or
            ``0.5``, which means ``macs=0.5``.
        action: Action mapping, see ``CompressionEnv``.
        reward: Name from ``amc_env.REWARDS``, or ``"package.module:name"``.
        proxy: How a candidate is repaired before it is evaluated.
        finetune_steps: Training steps of a candidate before it is evaluated.
        criterion: How channels are ranked.
        round_to: Kept channels come in multiples of this.
        n_validation: Images that a candidate is evaluated on inside an episode.
        validation_split: ``"random"`` or ``"tail"``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        seed: Draws everything random in the learner; the splits are always the same.
        render_mode: ``"ansi"``, ``"rgb_array"`` or None.
        cost_models: Further costs for budget and reward: name -> ``"package.module:Class"``.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for.
    """
    splits = load_data(data, seed=seed, validation_split=validation_split)
    network = trained_network(model, data, weights, splits)
    learner = ChannelPruning(
        network,
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        criterion=criterion,
        proxy=proxy,
        finetune_steps=finetune_steps,
        round_to=round_to,
        n_validation=n_validation,
        precision=precision,
        train=splits.train,
        seed=seed,
    )
    return CompressionEnv(
        learner, budget, action=action, reward=reward, cost_models=cost_models,
        render_mode=render_mode,
    )  # fmt: skip


def make_digits_channels(
    budget: BudgetLike = "macs=0.3", round_to: int = 2, **options: Any
) -> CompressionEnv:
    """Builds ``amc/digits-channels-v0``: a trained network on scikit-learn's embedded digits.

    Args:
        budget: As in :func:`make_channels`.
        round_to: As in :func:`make_channels`; the network is narrow.
        options: Any other option of :func:`make_channels`.
    """
    # Single precision gives the same accuracies on every processor.
    options = {"precision": "fp32"} | options
    return make_channels(budget=budget, round_to=round_to, **options)


def make_resnet20_channels(
    data: str = "data/cifar10",
    weights: str = "checkpoints/resnet20_cifar10.safetensors",
    **options: Any,
) -> CompressionEnv:
    """Builds ``amc/resnet20-channels-v0``.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Weights of a ResNet-20 trained on it.
        options: Any other option of :func:`make_channels`.
    """
    return make_channels(model="resnet20", data=data, weights=weights, **options)


def make_bits(
    model: str = "digitsnet",
    data: str = "digits",
    weights: str | None = None,
    budget: BudgetLike = "mean_bits=4/32",
    quantizer: str = "uniform",
    weight_bits: int | Sequence[int] = ALL_BITS,
    activation_bits: int | Sequence[int] = 8,
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    proxy: str = "recalibration",
    finetune_steps: int = 0,
    n_validation: int = 3000,
    validation_split: SplitKind = "random",
    precision: str = "auto",
    seed: int = 0,
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> CompressionEnv:
    """Builds a task that decides the bits of every layer, as HAQ does.

    Options that :func:`make_channels` has too mean the same here; the budget may be
    ``"mean_bits=4/32"``, ``"bytes=0.15"``, ``"bops=1/64"``, or several of them. ``quantizer`` is
    ``"uniform"`` or ``"codebook"``. ``weight_bits`` are the bits to choose from, or one number for
    all layers (16 leaves a layer alone), and ``activation_bits`` the same for the inputs of the
    layers. ``quantization`` holds any other option of the quantizing learner, say
    ``{"granularity": "tensor"}``.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or the
            quantizer is unknown.
    """
    quantize = quantizer_named(quantizer)
    splits = load_data(data, seed=seed, validation_split=validation_split)
    learner = quantize(
        trained_network(model, data, weights, splits),
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        weight_bits=weight_bits,
        activation_bits=activation_bits,
        proxy=proxy,
        finetune_steps=finetune_steps,
        n_validation=n_validation,
        precision=precision,
        train=splits.train,
        seed=seed,
        **dict(quantization or {}),
    )
    return CompressionEnv(
        learner, budget, action=action, reward=reward, cost_models=cost_models,
        render_mode=render_mode,
    )  # fmt: skip


def make_density(
    model: str = "digitsnet",
    data: str = "digits",
    weights: str | None = None,
    budget: BudgetLike = "density=0.25",
    pattern: str = "unstructured",
    min_density: float = 0.02,
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    proxy: str = "reconstruction+recalibration",
    finetune_steps: int = 0,
    n_validation: int = 3000,
    validation_split: SplitKind = "random",
    precision: str = "auto",
    seed: int = 0,
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
) -> CompressionEnv:
    """Builds a task that decides how many weights of every layer stay.

    Options that :func:`make_channels` has too mean the same here; the budget may be
    ``"density=0.25"`` (a share of all weights), ``"bytes=0.2"``, or both. ``pattern`` is
    ``"unstructured"``, ``"block4"``, ``"2:4"`` or the like, and ``min_density`` the smallest share
    of its weights that a layer may keep.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or there is
            no such pattern.
    """
    splits = load_data(data, seed=seed, validation_split=validation_split)
    learner = WeightSparsification(
        trained_network(model, data, weights, splits),
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        pattern=pattern,
        min_density=min_density,
        proxy=proxy,
        finetune_steps=finetune_steps,
        n_validation=n_validation,
        precision=precision,
        train=splits.train,
        seed=seed,
    )
    return CompressionEnv(
        learner, budget, action=action, reward=reward, cost_models=cost_models,
        render_mode=render_mode,
    )  # fmt: skip


def make_joint(
    model: str = "digitsnet",
    data: str = "digits",
    weights: str | None = None,
    budget: BudgetLike = "macs=0.5,bytes=0.15",
    quantizer: str = "uniform",
    weight_bits: int | Sequence[int] = ALL_BITS,
    activation_bits: int | Sequence[int] = 8,
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    proxy: str = "reconstruction+recalibration",
    finetune_steps: int = 0,
    criterion: str = "l1",
    round_to: int = 8,
    n_validation: int = 3000,
    validation_split: SplitKind = "random",
    precision: str = "auto",
    seed: int = 0,
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
    pruning: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> CompressionEnv:
    """Builds a task that decides channels and bits in one episode, layer by layer.

    Options mean what they mean to :func:`make_channels` and :func:`make_bits`. ``pruning`` holds
    any other option of channel pruning, say ``{"min_ratio": 0.2}``, and ``quantization`` any other
    one of the quantizing learner.

    Raises:
        ValueError: If no weights are given for a network that none are shipped for, or the
            quantizer is unknown.
    """
    quantizer_named(quantizer)
    splits = load_data(data, seed=seed, validation_split=validation_split)
    bits = {"weight_bits": weight_bits, "activation_bits": activation_bits}
    learner = joint_compression(
        trained_network(model, data, weights, splits),
        splits.calibration.images[:1],
        splits.calibration,
        splits.validation,
        quantizer=quantizer,
        pruning={"criterion": criterion, "round_to": round_to, **(pruning or {})},
        quantization={**bits, **(quantization or {})},
        proxy=proxy,
        finetune_steps=finetune_steps,
        train=splits.train,
        n_validation=n_validation,
        precision=precision,
        seed=seed,
    )
    return CompressionEnv(
        learner, budget, action=action, reward=reward, cost_models=cost_models,
        render_mode=render_mode,
    )  # fmt: skip


def make_digits_bits(**options: Any) -> CompressionEnv:
    """Builds ``amc/digits-bits-v0``: the network of ``amc/digits-channels-v0``, 4 bits on average.

    Args:
        options: Any option of :func:`make_bits`.
    """
    return make_bits(**{"precision": "fp32"} | options)


def make_digits_density(**options: Any) -> CompressionEnv:
    """Builds ``amc/digits-density-v0``: the same network, a quarter of its weights.

    Args:
        options: Any option of :func:`make_density`.
    """
    return make_density(**{"precision": "fp32"} | options)


def make_digits_joint(round_to: int = 2, **options: Any) -> CompressionEnv:
    """Builds ``amc/digits-joint-v0``.

    Args:
        round_to: As in :func:`make_joint`; the network is narrow.
        options: Any other option of :func:`make_joint`.
    """
    return make_joint(round_to=round_to, **{"precision": "fp32"} | options)


def make_resnet20_bits(
    data: str = "data/cifar10",
    weights: str = "checkpoints/resnet20_cifar10.safetensors",
    **options: Any,
) -> CompressionEnv:
    """Builds ``amc/resnet20-bits-v0``.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Weights of a ResNet-20 trained on it.
        options: Any other option of :func:`make_bits`.
    """
    return make_bits(model="resnet20", data=data, weights=weights, **options)


def make_resnet20_joint(
    data: str = "data/cifar10",
    weights: str = "checkpoints/resnet20_cifar10.safetensors",
    **options: Any,
) -> CompressionEnv:
    """Builds ``amc/resnet20-joint-v0``.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Weights of a ResNet-20 trained on it.
        options: Any other option of :func:`make_joint`.
    """
    return make_joint(model="resnet20", data=data, weights=weights, **options)


def make_resnet20_density(
    data: str = "data/cifar10",
    weights: str = "checkpoints/resnet20_cifar10.safetensors",
    **options: Any,
) -> CompressionEnv:
    """Builds ``amc/resnet20-density-v0``.

    Args:
        data: Folder with CIFAR-10 as parquet files.
        weights: Weights of a ResNet-20 trained on it.
        options: Any other option of :func:`make_density`.
    """
    return make_density(model="resnet20", data=data, weights=weights, **options)


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
