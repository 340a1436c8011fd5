"""What a quantization learner does once: checks of its options, images, and the file's header."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from amc_env.cost import BytesCost
from amc_env.errors import InputDataError
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan
from amc_env.storage import StorageFormat
from learners.base import Batches
from learners.candidates import channels_last
from learners.intake import check_labels, collect
from learners.precision import resolve_precision
from learners.proxy import Proxy
from learners.quantization.decisions import BitChoice, Bits, check_bits
from learners.quantization.packing import packed_bytes
from learners.quantization.ranges import check_rule
from learners.quantization.uniform_quantizer import check_granularity
from learners.training import TrainingConfig

PROXIES = ("none", "recalibration")
QUANTIZED_LEARNING_RATE = 0.01
QUANTIZED_GRADIENT_CLIP = 1.0


def check_options(
    *,
    weight_bits: Bits,
    activation_bits: Bits,
    first_last_bits: int | None,
    granularity: str,
    bucket_size: int,
    activation_range: str,
    proxy: str,
    finetune_steps: int,
    train: Batches | None,
    precision: str,
    numbers_of_images: tuple[int | None, ...],
) -> None:
    """Refuses options that have no such value, before any work is done.

    Raises:
        ValueError: If one has not.
    """
    check_bits("weight_bits", weight_bits)
    check_bits("activation_bits", activation_bits)
    if first_last_bits is not None:
        check_bits("first_last_bits", first_last_bits)
    check_granularity(granularity, bucket_size)
    check_rule(activation_range)
    resolve_precision(precision)
    if proxy not in PROXIES:
        raise ValueError(f"Unknown proxy {proxy!r}; choose one of {list(PROXIES)}.")
    if finetune_steps and train is None:
        raise ValueError(
            f"Expected training batches for finetune_steps={finetune_steps}, got none; "
            f"pass train=loader."
        )
    if any(n is not None and n < 1 for n in numbers_of_images):
        raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")


def check_not_constant(images: Tensor) -> None:
    """Refuses calibration images that are all the same number.

    Raises:
        InputDataError: If they are.
    """
    if bool((images == images.flatten()[0]).all()):
        raise InputDataError(
            "Expected calibration images that differ, got the same constant everywhere: no "
            "range of activations can be found; pass real training images."
        )


def training_batches(
    batches: Batches | None, steps: int, example: Tensor, n_outputs: int, device: torch.device
) -> list[tuple[Tensor, Tensor]]:
    """Preloads the batches that every candidate is trained on before it is judged.

    Raises:
        InputDataError: If there is none, or it does not fit the network.
    """
    if not steps or batches is None:
        return []
    loaded = []
    for batch in islice(batches, steps):
        x, y = collect([batch], None, "training", example)
        check_labels(y, n_outputs, "training")
        loaded.append((channels_last(x.to(device)), y.to(device)))
    if not loaded:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return loaded


def storage_format(
    choice: BitChoice,
    *,
    granularity: str,
    bucket_size: int,
    bytes_per_bucket: float,
    codebook: bool,
    bytes_per_channel: float,
    folded: dict[str, str],
    fixed_bytes: float = 0.0,
) -> StorageFormat:
    """Returns how a learner's networks are stored, as costs count them."""
    return StorageFormat(
        weight_bits={k: float(v) for k, v in choice.fixed_weights.items()},
        activation_bits={k: float(v) for k, v in choice.fixed_inputs.items()},
        granularity=granularity,
        bucket_size=bucket_size,
        bytes_per_bucket=bytes_per_bucket,
        codebook=codebook,
        bytes_per_channel=bytes_per_channel,
        folded=folded,
        fixed_bytes=fixed_bytes,
    )


def header_bytes(
    network: nn.Module, graph: LayerGraph, choice: BitChoice, form: StorageFormat
) -> int:
    """Returns the bytes of a packed file that are no tensor's: header and activation ranges.

    Measured on the network of the most bits; they hardly depend on the plan.
    """
    full = CompressionPlan.full(choice.decisions)
    tensors = BytesCost(graph, choice.decisions, form)(full.values_for(choice.decisions))
    return max(round(len(packed_bytes(network, plan=full)) - tensors), 0)


def quantized_training(seed: int = 0) -> TrainingConfig:
    """Returns the usual settings for training a quantized network.

    Folded norms leave channels of very different size and nothing that tames a large step: on
    ResNet-20 at two bits a rate of 0.003 diverges, unless the gradient's norm is limited.
    """
    return TrainingConfig(
        epochs=10,
        learning_rate=QUANTIZED_LEARNING_RATE,
        weight_decay=0.0,
        gradient_clip=QUANTIZED_GRADIENT_CLIP,
        seed=seed,
    )


def quantized_proxy(name: str, finetune_steps: int) -> Proxy:
    """Returns the proxy of that name, whose steps have limited gradients.

    Raises:
        ValueError: If there is none of that name, or the steps are negative.
    """
    return replace(Proxy.parse(name, finetune_steps), gradient_clip=QUANTIZED_GRADIENT_CLIP)
