"""Prepares channel pruning and quantization of one network as one learner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from amc_env.cost import BytesCost
from amc_env.plan import CompressionPlan, DecisionKind
from amc_env.storage import StorageFormat
from learners.base import Batches
from learners.candidates import limited_threads
from learners.channel_pruning import ChannelPruning
from learners.intake import check_weights
from learners.joint_learner import BriefTraining, JointCompression, QuantizationPart, apply_parts
from learners.parts import PlanPart, interleaved, plan_of
from learners.precision import working_dtype
from learners.proxy import Proxy
from learners.quantization.codebook import CodebookQuantization
from learners.quantization.judge import QuantizedJudge
from learners.quantization.learner import QuantizationLearner
from learners.quantization.modules import quantized_layers
from learners.quantization.preparation import (
    check_counts,
    check_training,
    header_bytes,
    read_images,
    training_batches,
)
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

    Options mean what they mean to ``QuantizationLearner``, and hold for both parts; the layers to
    ``ignore`` are left whole, and in float. ``quantizer`` is a name in :data:`QUANTIZERS`,
    ``proxy`` one in ``learners.proxy.PROXIES``: recalibration is that of the batch norms of the
    cut network and that of the quantized one. ``pruning`` holds further options of
    ``ChannelPruning``, e.g. ``{"round_to": 4}``, and ``quantization`` such of the quantizer, e.g.
    ``{"activation_bits": 16}``.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no channel of the network can be cut safely.
        ValueError: If an option has no such value.
    """
    Proxy.parse(proxy, finetune_steps)
    check_counts(n_validation, n_calibration, n_recalibration)
    check_training(finetune_steps, train)
    quantize, count = quantizer_named(quantizer), max(n_calibration, n_recalibration)
    reference = copy.deepcopy(model).to(device).eval()
    check_weights(reference)
    seen, held_out, n_outputs = read_images(
        reference, calibration, validation, count, example_input
    )
    place, dtype = torch.device(device), working_dtype(reference, precision, device)
    batches = training_batches(train, finetune_steps, example_input, n_outputs, place)
    shared: dict[str, Any] = {"ignore": tuple(ignore), "precision": precision, "device": device}
    shared |= {"seed": seed, "progress": progress, "threads": threads}
    counts = {"n_calibration": n_calibration, "n_recalibration": n_recalibration}
    matching = "recalibration" if "recalibration" in proxy else "none"
    few = [(held_out[0][:_PART_IMAGES], held_out[1][:_PART_IMAGES])]
    given = (reference, example_input, [seen], few)
    bits = quantize(*given, **{"proxy": matching, **counts, **shared, **(quantization or {})})
    channels = ChannelPruning(*given, **{"proxy": proxy, **counts, **shared, **(pruning or {})})
    training = BriefTraining(batches, finetune_steps, dtype, seed)
    return _joined(channels, bits, held_out, example_input, n_validation, training, shared)


def _joined(
    channels: ChannelPruning,
    bits: QuantizationLearner,
    held_out: tuple[Tensor, Tensor],
    example: Tensor,
    n_validation: int | None,
    training: BriefTraining,
    shared: Mapping[str, Any],
) -> JointCompression:
    """Joins the two parts and gives them a judge."""
    parts: tuple[PlanPart, ...] = (channels, QuantizationPart(bits))
    with limited_threads(shared["threads"]):
        storage = _storage(channels, bits, parts, example)
        narrow = _with_keep_ratios(parts, 0.0)
        judge = QuantizedJudge(
            channels.original,
            network := apply_parts(parts, narrow, exact=True),
            _with_float_inputs(network),
            *held_out,
            n_validation=n_validation,
            precision=shared["precision"],
            device=torch.device(shared["device"]),
            seed=shared["seed"],
        )
    return JointCompression(
        parts,
        judge,
        storage=storage,
        validation=judge.validation,
        training=training,
        settings=bits._training_defaults(),  # its steps are the more delicate ones
        device=shared["device"],
        threads=shared["threads"],
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
    plan = CompressionPlan({**_with_keep_ratios(parts, 0.5), **bits.most_bits()})
    tensors = BytesCost(channels.graph, decisions, form)(plan.values_for(decisions))
    header = header_bytes(
        apply_parts(parts, plan, exact=True),
        plan,
        tensors,
        kept=channels.kept_units(plan_of(channels, plan)),
        example_input=example,
    )
    return replace(form, fixed_bytes=header)
