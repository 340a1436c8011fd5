"""Preparation of quantization learners: option checks, images, file header."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches
from amc_compress.learners.candidates.preparation import check_training
from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.structure import quantizable_layers
from amc_compress.learners.numerics.layout import laid_out, owned
from amc_compress.learners.numerics.precision import resolve_precision
from amc_compress.learners.quantization.calibration import Observation, observe
from amc_compress.learners.quantization.decisions import Bits, check_bits
from amc_compress.learners.quantization.uniform.quantizer import check_granularity
from amc_compress.learners.quantization.uniform.ranges import check_rule
from amc_compress.learners.training.config import TrainingConfig
from amc_env.errors import UntraceableModelError
from amc_env.graph import LayerGraph

PROXIES = ("none", "recalibration")
_CALIBRATION_BATCH = 64
QUANTIZED_LEARNING_RATE = 0.01
QUANTIZED_GRADIENT_CLIP = 1.0


def check_bit_options(
    weight_bits: Bits, activation_bits: Bits, first_last_bits: int | None
) -> None:
    """Checks that a quantizer exists for the bits.

    Raises:
        ValueError: If there are some.
    """
    check_bits("weight_bits", weight_bits)
    check_bits("activation_bits", activation_bits)
    if first_last_bits is not None:
        check_bits("first_last_bits", first_last_bits)


def check_fitting(granularity: str, bucket_size: int, activation_range: str) -> None:
    """Rejects unknown ways to fit quantizers.

    Raises:
        ValueError: If an option has no such value.
    """
    check_granularity(granularity, bucket_size)
    check_rule(activation_range)


def check_evaluation(
    proxy: str, finetune_steps: int, train: Batches | None, precision: str
) -> None:
    """Validates the options that a candidate is evaluated with.

    Raises:
        ValueError: If an option has no such value, or training batches are missing.
    """
    resolve_precision(precision)
    if proxy not in PROXIES:
        raise ValueError(f"Unknown proxy {proxy!r}; choose one of {list(PROXIES)}.")
    check_training(finetune_steps, train)


def check_dense(network: nn.Module) -> None:
    """Rejects networks with masks: their costs are not those of the network that is traced.

    Raises:
        ValueError: If a layer has a mask.
    """
    if masked := list(masked_layers(network)):
        raise ValueError(
            f"Expected a network without masks to prepare a quantizer for, got masked layers "
            f"{masked[:3]}; prepare it for the dense network and give the sparse one to "
            f"quantize(network, plan), or decide densities and bits with deep_compression."
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
        layout: Of images; see ``amc_compress.learners.numerics.layout``.
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
