"""What a quantization learner does once: checks of its options, images, and the file's header."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor, nn

from amc_env.errors import InputDataError, UntraceableModelError
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan
from learners.base import Batches
from learners.held_out import HeldOut
from learners.intake import check_labels, collect, count_outputs
from learners.layout import laid_out, owned
from learners.masking import masked_layers
from learners.precision import resolve_precision
from learners.proxy import Proxy
from learners.quantization.calibration import Observation, observe
from learners.quantization.decisions import Bits, check_bits
from learners.quantization.packing import packed_bytes
from learners.quantization.ranges import check_rule
from learners.quantization.structure import quantizable_layers
from learners.quantization.uniform_quantizer import check_granularity
from learners.stepping import seeded
from learners.training import TrainingConfig

PROXIES = ("none", "recalibration")
_CALIBRATION_BATCH = 64
QUANTIZED_LEARNING_RATE = 0.01
QUANTIZED_GRADIENT_CLIP = 1.0


def check_bit_options(
    weight_bits: Bits, activation_bits: Bits, first_last_bits: int | None
) -> None:
    """Refuses bits that no quantizer has.

    Raises:
        ValueError: If there are some.
    """
    check_bits("weight_bits", weight_bits)
    check_bits("activation_bits", activation_bits)
    if first_last_bits is not None:
        check_bits("first_last_bits", first_last_bits)


def check_fitting(granularity: str, bucket_size: int, activation_range: str) -> None:
    """Refuses ways to fit quantizers that there are not.

    Raises:
        ValueError: If an option has no such value.
    """
    check_granularity(granularity, bucket_size)
    check_rule(activation_range)


def check_judging(proxy: str, finetune_steps: int, train: Batches | None, precision: str) -> None:
    """Refuses what no candidate can be judged by.

    Raises:
        ValueError: If an option has no such value, or training batches are missing.
    """
    resolve_precision(precision)
    if proxy not in PROXIES:
        raise ValueError(f"Unknown proxy {proxy!r}; choose one of {list(PROXIES)}.")
    check_training(finetune_steps, train)


def check_training(finetune_steps: int, train: Batches | None) -> None:
    """Refuses steps without batches.

    Raises:
        ValueError: If there are none.
    """
    if finetune_steps and train is None:
        raise ValueError(
            f"Expected training batches for finetune_steps={finetune_steps}, got none; "
            f"pass train=loader."
        )


def check_counts(n_validation: int | None, n_calibration: int, n_recalibration: int) -> None:
    """Refuses numbers of images below 1.

    Raises:
        ValueError: If one is.
    """
    if min(n_calibration, n_recalibration, 1 if n_validation is None else n_validation) < 1:
        raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")


def read_images(
    network: nn.Module,
    calibration: Batches,
    validation: Batches,
    n_calibration: int,
    example: Tensor,
    *,
    n_validation: int | None,
    seed: int,
) -> tuple[tuple[Tensor, Tensor], HeldOut, int]:
    """Reads both kinds of batches and checks them against the network.

    Returns:
        Calibration images and labels, the validation images, the number of classes.

    Raises:
        InputDataError: If images or labels are not what the network takes, or all the same.
    """
    images, labels = collect(calibration, n_calibration, "calibration", example)
    held_out = HeldOut(validation, example, n_validation=n_validation, seed=seed)
    device = next(network.parameters()).device
    n_outputs = count_outputs(network, images[:2].to(device))
    check_labels(labels, n_outputs, "calibration")
    check_labels(held_out.labels, n_outputs, "validation")
    check_not_constant(images)
    return (images, labels), held_out, n_outputs


def check_dense(network: nn.Module) -> None:
    """Refuses networks with masks: their costs are not those of the network that is traced.

    Raises:
        ValueError: If a layer has a mask.
    """
    if masked := list(masked_layers(network)):
        raise ValueError(
            f"Expected a network without masks to prepare a quantizer for, got masked layers "
            f"{masked[:3]}; prepare it for the dense network and give the sparse one to "
            f"quantize(network, plan), or decide densities and bits with deep_compression."
        )


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


def observe_layers(
    network: nn.Module,
    graph: LayerGraph,
    images: Tensor,
    n_recalibration: int,
    ignore: Sequence[str],
    *,
    layout: torch.memory_format,
    seed: int,
    progress: bool,
) -> tuple[Tensor, Observation, tuple[str, ...]]:
    """Runs the float network over the calibration images; finds what can be quantized.

    Args:
        network: The folded network.
        graph: Facts about it.
        images: Calibration images on its device.
        n_recalibration: Images on which outputs are matched, the first ones.
        ignore: Layers (or modules that hold them) that stay in float.
        layout: Of images; see ``learners.layout``.
        seed: Of the random sample of inputs.
        progress: Whether to show a progress bar.

    Returns:
        The recalibration images, inputs of all layers on all images and outputs on these, and
        the layers that ran, in network order.

    Raises:
        InputDataError: If an activation is NaN or infinite.
        UntraceableModelError: If no layer of the network can be quantized.
        ValueError: If a name to ignore is that of no layer.
    """
    names = quantizable_layers(network, graph, ignore)
    recalibration = owned(laid_out(images[:n_recalibration], layout))
    batches = [laid_out(x, layout) for x in torch.split(images, _CALIBRATION_BATCH)]
    seen = observe(network, batches, names, seed=seed, progress=progress)
    there = observe(network, [recalibration], names, seed=seed)
    layers = tuple(n for n in names if n in seen.inputs)
    if not layers:
        raise UntraceableModelError(
            f"Expected an nn.Conv2d or nn.Linear that runs, to quantize it; of the layers "
            f"{[x.name for x in graph.layers]} none is one (ignored: {list(ignore)})."
        )
    return recalibration, Observation(seen.inputs, there.outputs, there.calls), layers


def training_batches(
    batches: Batches | None,
    steps: int,
    example: Tensor,
    n_outputs: int,
    device: torch.device,
    *,
    layout: torch.memory_format = torch.channels_last,
    seed: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Preloads the batches that every candidate is trained on before it is judged.

    Args:
        batches: ``(images, labels)``; so many as there are steps are loaded at most.
        steps: SGD steps of a candidate.
        example: One batch as the network takes it.
        n_outputs: Classes of the network.
        device: Where to keep them.
        layout: Of images; see ``learners.layout``.
        seed: Decides the order of ``batches``, for loaders that shuffle.

    Raises:
        InputDataError: If there is none, or it does not fit the network.
    """
    if not steps or batches is None:
        return []
    loaded = []
    with seeded(batches, seed):
        for batch in islice(batches, steps):
            x, y = collect([batch], None, "training", example)
            check_labels(y, n_outputs, "training")
            loaded.append((laid_out(x.to(device), layout), y.to(device)))
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
