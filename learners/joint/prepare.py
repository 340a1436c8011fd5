"""Prepares several kinds of compression of one network as one learner."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from amc_compress.learners.candidates.evaluator import CandidateEvaluator
from amc_compress.learners.candidates.preparation import read_samples, training_batches
from amc_compress.learners.joint.learner import BriefTraining, JointCompression, apply_parts
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.joint.storage import joint_storage, plan_at
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.numerics.precision import working_dtype
from amc_compress.learners.tasks.inputs import count
from amc_compress.learners.training.data_checks import Batches, check_weights, collect
from amc_env.support.threads import limited_threads
from amc_env.validation.checks import checked

# The parts evaluate nothing themselves; what they are given only has to show that images fit.
_PART_IMAGES = 64


@checked
def joint_compression(
    model: nn.Module,
    example_input: Any,
    calibration: Batches,
    validation: Batches,
    *,
    quantizer: str = "uniform",
    pruning: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    sparsification: Mapping[str, Any] | None = None,
    **options: Any,
) -> JointCompression:
    """Prepares channel pruning, quantization, and if wanted densities, as one learner.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it.
        calibration: Batches for statistics and ranges.
        validation: Batches to evaluate candidates on.
        quantizer: Name in :data:`QUANTIZERS`.
        pruning: Further options of ``ChannelPruning``, e.g. ``{"round_to": 4}``.
        quantization: Such of the quantizer, e.g. ``{"activation_bits": 16}``.
        sparsification: Such of ``WeightSparsification``, e.g. ``{"pattern": "2:4"}``; ``{}``
            decides densities with its defaults, ``None`` decides none. Training goes on behind the
            masks of the plan; zeros that grow meanwhile are those of ``deep_compression``.
        **options: Those of :class:`JointOptions`, for all parts. Recalibration is that of the
            batch norms of the cut and sparse network, and of the quantized layers' outputs.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no channel of the network can be cut safely.
        ValueError: If an option has no such value, or a schedule of zeros is given.
    """
    if schedule := sorted(name for name in sparsification or {} if name.startswith("schedule")):
        raise ValueError(
            f"Expected no schedule of zeros, got {', '.join(schedule)}: a joint compression is "
            f"trained behind the masks of its plan. For zeros that grow while the network trains "
            f"take amc_compress.learners.joint.deep and compress_deeply."
        )
    told = JointOptions(
        quantizer=quantizer,
        pruning=pruning or {},
        sparsification=sparsification,
        quantization=quantization or {},
        **options,
    )
    return prepare_joint(model, example_input, calibration, validation, told)


def prepare_joint(
    model: nn.Module,
    example_input: Any,
    calibration: Batches,
    validation: Batches,
    options: JointOptions,
) -> JointCompression:
    """Prepares those kinds of compression for which options are given; bits always are.

    Channels are cut first, then weights of the cut network set to zero, then what is left is
    quantized. See :func:`joint_compression`.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If a part finds nothing to decide.
        ValueError: If an option has no such value.
    """
    options.check_training()
    kinds = options.parts()
    device = torch.device(options.device)
    taken = take_in(model, device)
    check_weights(taken.network)
    samples = read_samples(taken.network, calibration, validation, example_input, options)
    held_out, task = samples.held_out, samples.task
    few = collect(held_out.batches, _PART_IMAGES, "validation", samples.example, task=task)
    seen = max(samples.calibration, samples.recalibration, key=lambda found: sum(map(count, found)))
    given = taken.network, samples.example, seen, few
    parts = [kind(*given, **{**told, "task": task}) for kind, told in kinds]
    with limited_threads(options.threads):
        storage = joint_storage(parts, samples.example)
        network = apply_parts(parts, plan_at(parts, 0.0), exact=True)
        evaluator = CandidateEvaluator(
            parts[0].original, held_out, [network], precision=options.precision, device=device
        )
    joined = JointCompression(
        parts,
        evaluator,
        storage=storage,
        validation=held_out.batches,
        training=BriefTraining(
            training_batches(samples, options),
            options.finetune_steps,
            working_dtype(taken.network, options.precision, device),
            options.seed,
            task,
        ),
        settings=parts[-1].training_defaults(),  # its steps are the more delicate ones
        device=device,
        threads=options.threads,
    )
    joined.form = taken.form
    return joined
