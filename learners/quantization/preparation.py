"""What a quantization learner does once: checks of its options, images, and the file's header."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan
from learners.base import Batches
from learners.candidates import channels_last
from learners.intake import check_labels, collect
from learners.precision import resolve_precision
from learners.proxy import Proxy
from learners.quantization.decisions import Bits, check_bits
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


def header_bytes(
    network: nn.Module,
    plan: CompressionPlan,
    tensors: float,
    *,
    kept: Mapping[str, Tensor] | None = None,
    example_input: Tensor | None = None,
) -> float:
    """Returns the bytes of a packed file that are no tensor's: header and activation ranges.

    They hardly depend on the plan, so that measuring one network is enough.

    Args:
        network: The network of ``plan``.
        plan: Bits, and whatever else is decided.
        tensors: Bytes that the cost counts for the tensors of that plan.
        kept: Channel group -> units that stay, if the network was sliced.
        example_input: Stored with a sliced network.

    Warns:
        UserWarning: If the file is smaller than its tensors were said to be; the header then
            counts nothing, and costs promise too much.
    """
    size = len(packed_bytes(network, kept=kept, plan=plan, example_input=example_input))
    if size < tensors:
        warnings.warn(
            f"Expected a packed file of more than the {tensors:.0f} bytes counted for its tensors, "
            f"got one of {size}: the storage format counts what the file does not hold, and the "
            f"bytes cost is too high by {tensors / size - 1:.1%} or more.",
            stacklevel=2,
        )
    return float(max(round(size - tensors), 0))


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
