"""Prepares several kinds of compression of one network as one learner."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.preparation import (
    check_counts,
    check_training,
    read_images,
    training_batches,
)
from amc_compress.learners.candidates.proxy import Proxy
from amc_compress.learners.candidates.quantized_evaluator import QuantizedEvaluator
from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.joint.learner import (
    BriefTraining,
    JointCompression,
    QuantizationPart,
    apply_parts,
)
from amc_compress.learners.joint.parts import PlanPart
from amc_compress.learners.joint.storage import joint_storage, plan_at
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.numerics.layout import layout_of
from amc_compress.learners.numerics.precision import working_dtype
from amc_compress.learners.quantization.codebook.learner import CodebookQuantization
from amc_compress.learners.quantization.learner import QuantizationLearner
from amc_compress.learners.quantization.uniform.learner import UniformQuantization
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.training.data_checks import check_weights, collect
from amc_env.threads import limited_threads
from amc_env.validation.checks import checked

__all__ = [
    "QUANTIZERS",
    "JointCompression",
    "JointOptions",
    "joint_compression",
    "prepare_joint",
    "quantizer_named",
]

QUANTIZERS: dict[str, type[QuantizationLearner]] = {
    "uniform": UniformQuantization,
    "codebook": CodebookQuantization,
}
"""Name -> learner that quantizes in that way."""

# The parts evaluate nothing themselves; what they are given only has to show that images fit.
_PART_IMAGES = 64


def quantizer_named(name: str) -> type[QuantizationLearner]:
    """Returns the learner that quantizes in that way.

    Raises:
        ValueError: If there is none of that name.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"Unknown quantizer {name!r}; expected one of {sorted(QUANTIZERS)}.")
    return QUANTIZERS[name]


@checked
@dataclass(frozen=True)
class JointOptions:
    """Options shared by all parts of a joint compression, the same as of every learner.

    Attributes:
        proxy: Name in ``amc_compress.learners.candidates.proxy.PROXIES``.
        finetune_steps: SGD steps on ``train`` before a candidate is evaluated.
        ignore: Layers (or modules that hold them) that stay whole, dense and in float.
        train: Batches for ``finetune_steps``.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``, for evaluation.
        device: Where to work.
        seed: Seed of every random choice.
        progress: Whether to show progress bars while preparing.
        n_validation: Images that an episode is evaluated on; all if ``None``.
        n_calibration: Images for statistics and ranges.
        n_recalibration: Images for batch norms and moments of outputs.
        threads: Threads during evaluation; ``None`` leaves PyTorch's setting alone.
    """

    proxy: str = "reconstruction+recalibration"
    finetune_steps: int = 0
    ignore: Sequence[str] = ()
    train: Batches | None = None
    precision: str = "auto"
    device: str | torch.device = "cpu"
    seed: int = 0
    progress: bool = False
    n_validation: int | None = 3000
    n_calibration: int = 512
    n_recalibration: int = 192
    threads: int | None = 1

    def check(self) -> None:
        """Rejects values that no part would take.

        Raises:
            ValueError: If there is one.
        """
        Proxy.parse(self.proxy, self.finetune_steps)
        check_counts(self.n_validation, self.n_calibration, self.n_recalibration)
        check_training(self.finetune_steps, self.train)

    def of_parts(self) -> dict[str, Any]:
        """Returns what every part is given; parts evaluate and train nothing themselves."""
        return {
            "ignore": tuple(self.ignore),
            "precision": self.precision,
            "device": self.device,
            "seed": self.seed,
            "progress": self.progress,
            "threads": self.threads,
            "n_calibration": self.n_calibration,
            "n_recalibration": self.n_recalibration,
            "proxy": self.proxy,
        }


@checked
def joint_compression(
    model: nn.Module,
    example_input: Tensor,
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
    return prepare_joint(
        model,
        example_input,
        calibration,
        validation,
        quantizer=quantizer,
        pruning=pruning or {},
        sparsification=sparsification,
        quantization=quantization or {},
        options=JointOptions(**options),
    )


def prepare_joint(
    model: nn.Module,
    example_input: Tensor,
    calibration: Batches,
    validation: Batches,
    *,
    quantizer: str,
    pruning: Mapping[str, Any] | None,
    sparsification: Mapping[str, Any] | None,
    quantization: Mapping[str, Any],
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
    options.check()
    quantize, count = (
        quantizer_named(quantizer),
        max(options.n_calibration, options.n_recalibration),
    )
    taken = take_in(model, options.device)
    reference = taken.network
    check_weights(reference)
    seen, held_out, n_outputs = read_images(
        reference, calibration, validation, count, example_input,
        n_validation=options.n_validation, seed=options.seed,
    )  # fmt: skip
    dtype = working_dtype(reference, options.precision, options.device)
    device = torch.device(options.device)
    batches = training_batches(
        options.train,
        options.finetune_steps,
        example_input,
        n_outputs,
        device,
        layout=layout_of(reference, seen[0][:1].to(device)),
        seed=options.seed,
    )
    few = [collect(held_out.batches, _PART_IMAGES, "validation", example_input)]
    given, shared = (reference, example_input, [seen], few), options.of_parts()
    matching = "recalibration" if "recalibration" in options.proxy else "none"
    bits = quantize(*given, **{**shared, "proxy": matching, **quantization})
    parts: list[PlanPart] = [QuantizationPart(bits)]
    if sparsification is not None:
        parts.insert(0, WeightSparsification(*given, **{**shared, **sparsification}))
    if pruning is not None:
        parts.insert(0, ChannelPruning(*given, **{**shared, **pruning}))
    training = BriefTraining(batches, options.finetune_steps, dtype, options.seed)
    joined = _joined(parts, bits, held_out, example_input, training, options)
    joined.form = taken.form
    return joined


def _joined(
    parts: Sequence[PlanPart],
    bits: QuantizationLearner,
    held_out: HeldOut,
    example: Tensor,
    training: BriefTraining,
    options: JointOptions,
) -> JointCompression:
    """Joins the parts and gives them an evaluator."""
    with limited_threads(options.threads):
        storage = joint_storage(parts, bits, example)
        network = apply_parts(parts, plan_at(parts, 0.0), exact=True)
        evaluator = QuantizedEvaluator(
            parts[0].original,
            network,
            _with_float_inputs(network),
            held_out,
            precision=options.precision,
            device=torch.device(options.device),
        )
    return JointCompression(
        parts,
        evaluator,
        storage=storage,
        validation=held_out.batches,
        training=training,
        settings=bits._training_defaults(),  # its steps are the more delicate ones
        device=options.device,
        threads=options.threads,
    )


def _with_float_inputs(network: nn.Module) -> nn.Module:
    """Returns a copy whose layers do not quantize their inputs."""
    copied = copy.deepcopy(network)
    for layer in quantized_layers(copied).values():
        layer.input_quantizer = None
    return copied
