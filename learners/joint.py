"""Prepares channel pruning and quantization of one network as one learner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from amc_env.cost import BytesCost
from amc_env.errors import InputDataError
from amc_env.plan import CompressionPlan, DecisionKind
from amc_env.storage import StorageFormat
from learners.base import Batches
from learners.candidates import channels_last, limited_threads
from learners.channel_pruning import ChannelPruning
from learners.intake import check_labels, check_weights, collect, count_outputs
from learners.joint_learner import BriefTraining, JointCompression, QuantizationPart, apply_parts
from learners.parts import PlanPart, interleaved, plan_of
from learners.precision import working_dtype
from learners.proxy import Proxy
from learners.quantization.codebook import CodebookQuantization
from learners.quantization.judge import QuantizedJudge
from learners.quantization.learner import QuantizationLearner
from learners.quantization.modules import quantized_layers
from learners.quantization.packing import packed_bytes
from learners.quantization.uniform import UniformQuantization

__all__ = ["QUANTIZERS", "JointCompression", "joint_compression", "quantizer_named"]

QUANTIZERS: dict[str, type[QuantizationLearner]] = {
    "uniform": UniformQuantization,
    "codebook": CodebookQuantization,
}
"""Name -> learner that quantizes in that way."""

# The parts judge nothing themselves; what they are given only has to show that images fit.
_PART_IMAGES = 64


def quantizer_named(name: str) -> type[QuantizationLearner]:
    """Returns the learner that quantizes in that way.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"Unknown quantizer {name!r}; expected one of {sorted(QUANTIZERS)}.")
    return QUANTIZERS[name]


def joint_compression(
    model: nn.Module,
    example_input: Tensor,
    calibration: Batches,
    validation: Batches,
    *,
    quantizer: str = "uniform",
    proxy: str = "reconstruction+recalibration",
    finetune_steps: int = 0,
    ignore: Sequence[str] = (),
    train: Batches | None = None,
    precision: str = "auto",
    device: str | torch.device = "cpu",
    seed: int = 0,
    progress: bool = False,
    n_validation: int | None = 3000,
    n_calibration: int = 512,
    n_recalibration: int = 192,
    threads: int | None = 1,
    pruning: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
) -> JointCompression:
    """Prepares channel pruning and quantization of one network as one learner.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it; only its shape matters.
        calibration: ``(images, labels)`` batches from the training data; read once.
        validation: Batches to judge candidates on, from neither the calibration nor the test
            data; read once.
        quantizer: Name in :data:`QUANTIZERS`.
        proxy: Name in ``learners.proxy.PROXIES``: the repairs of a candidate. Recalibration is
            that of the batch norms of the cut network and that of the quantized one.
        finetune_steps: SGD steps of the finished candidate before it is judged.
        ignore: Layers (or modules that hold them) to leave alone: whole, and in float.
        train: Batches for ``finetune_steps``; the first ones are preloaded.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for judging; results are float32.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show progress bars while preparing.
        n_validation: Images that judge inside an episode, a fixed random subset; all if ``None``.
        n_calibration: Images for input statistics and ranges.
        n_recalibration: Images for recalibration, the first of the calibration images.
        threads: Threads while candidates are made and judged.
        pruning: Further options of ``ChannelPruning``, e.g. ``{"round_to": 4}``.
        quantization: Further options of the quantizer, e.g. ``{"activation_bits": 16}``.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no channel of the network can be cut safely.
        ValueError: If an option has no such value.

    Example:
        >>> learner = joint_compression(model, x, calibration, validation)  # doctest: +SKIP
        >>> env = CompressionEnv(learner, "macs=0.5,bytes=0.15")  # doctest: +SKIP
    """
    Proxy.parse(proxy, finetune_steps)
    if min(n_calibration, n_recalibration, 1 if n_validation is None else n_validation) < 1:
        raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")
    reference = copy.deepcopy(model).to(device).eval()
    check_weights(reference)
    seen = collect(calibration, max(n_calibration, n_recalibration), "calibration", example_input)
    images, labels = collect(validation, None, "validation", example_input)
    n_outputs = count_outputs(reference, images[:2].to(device))
    check_labels(labels, n_outputs, "validation")
    training = _brief_training(
        reference, train, finetune_steps, precision, device, seed, example_input, n_outputs
    )
    shared: dict[str, Any] = {
        "ignore": tuple(ignore),
        "precision": precision,
        "device": device,
        "seed": seed,
        "progress": progress,
        "n_calibration": n_calibration,
        "n_recalibration": n_recalibration,
        "threads": threads,
    }
    matching = "recalibration" if "recalibration" in proxy else "none"
    given = (reference, example_input, [seen], [(images[:_PART_IMAGES], labels[:_PART_IMAGES])])
    quantize = quantizer_named(quantizer)
    bits = quantize(*given, **{"proxy": matching, **shared, **(quantization or {})})
    channels = ChannelPruning(*given, **{"proxy": proxy, **shared, **(pruning or {})})
    with limited_threads(threads):
        parts: tuple[PlanPart, ...] = (channels, QuantizationPart(bits))
        storage = _storage(channels, bits, parts, example_input)
        narrow = _with_keep_ratios(parts, 0.0)
        judge = QuantizedJudge(
            channels.original,
            network := apply_parts(parts, narrow, exact=True),
            _with_float_inputs(network),
            images,
            labels,
            n_validation=n_validation,
            precision=precision,
            device=torch.device(device),
            seed=seed,
        )
    return JointCompression(
        parts,
        judge,
        storage=storage,
        validation=judge.validation,
        training=training,
        settings=bits._training_defaults(),  # its steps are the more delicate ones
        device=device,
        threads=threads,
    )


def _with_keep_ratios(parts: Sequence[PlanPart], ratio: float) -> CompressionPlan:
    """Returns the plan with all keep ratios near ``ratio`` and everything else at its most."""
    decisions = [d for part in parts for d in part.decisions]
    return CompressionPlan(
        {
            d.key: d.nearest(ratio) if d.kind is DecisionKind.KEEP_RATIO else d.choices[-1]
            for d in decisions
        }
    )


def _with_float_inputs(network: nn.Module) -> nn.Module:
    """Returns a copy whose layers do not quantize their inputs."""
    copied = copy.deepcopy(network)
    for layer in quantized_layers(copied).values():
        layer.input_quantizer = None
    return copied


def _storage(
    channels: ChannelPruning,
    bits: QuantizationLearner,
    parts: Sequence[PlanPart],
    example: Tensor,
) -> StorageFormat:
    """Returns how joint networks are stored; the header of the packed file is measured.

    On a network with half of the channels and the most bits: a file holds the plan, and which
    channels stayed, and neither depends much on what they are.
    """
    form = replace(bits.storage, fixed_bytes=0.0)
    decisions = interleaved(channels.graph, [part.decisions for part in parts])
    plan = _with_keep_ratios(parts, 0.5)
    tensors = BytesCost(channels.graph, decisions, form)(plan.values_for(decisions))
    stored = packed_bytes(
        apply_parts(parts, plan, exact=True),
        kept=channels.kept_units(plan_of(channels, plan)),
        plan=plan,
        example_input=example,
    )
    return replace(form, fixed_bytes=float(max(round(len(stored) - tensors), 0)))


def _brief_training(
    model: nn.Module,
    train: Batches | None,
    steps: int,
    precision: str,
    device: str | torch.device,
    seed: int,
    example: Tensor,
    n_outputs: int,
) -> BriefTraining:
    """Preloads the batches that every candidate is trained on before it is judged."""
    if not steps:
        return BriefTraining()
    if train is None:
        raise ValueError(
            f"Expected training batches for finetune_steps={steps}, got none; pass train=loader."
        )
    batches = []
    for batch in islice(train, steps):
        x, y = collect([batch], None, "training", example)
        check_labels(y, n_outputs, "training")
        batches.append((channels_last(x.to(device)), y.to(device)))
    if not batches:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return BriefTraining(batches, steps, working_dtype(model, precision, device), seed)
