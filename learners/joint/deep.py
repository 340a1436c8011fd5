"""Deep Compression: most weights zero, the others from a codebook, the file entropy-coded.

Han, Mao & Dally 2016 (1510.00149): prune -> train -> share weights -> train the shared values ->
code by entropy. :func:`deep_compression` decides densities and bits in one search;
:func:`compress_deeply` carries a plan out in the paper's order.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from amc_compress.learners.joint.learner import JointCompression, apply_parts
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.joint.parts import plan_of
from amc_compress.learners.joint.prepare import prepare_joint
from amc_compress.learners.packing.packed_file import packed_bytes
from amc_compress.learners.quantization.codebook.learner import MODES, set_mode
from amc_compress.learners.quantization.decisions import Bits
from amc_compress.learners.sparsification import WeightSparsification
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_compress.learners.training.hooks import TrainingHook
from amc_env.files import save_bytes
from amc_env.plan import CompressionPlan
from amc_env.support.threads import limited_threads
from amc_env.validation.checks import check_known, checked

PACKED = "network.packed"
TOLERANCE = 0.03
"""Share by which a file may exceed what budgets count: sizes are measured before any training."""

SLACK_BYTES = 256
"""Besides, what headers differ by, more than 3% of a file of a few thousand bytes."""


@checked
def deep_compression(
    model: nn.Module,
    example_input: Tensor,
    calibration: Batches,
    validation: Batches,
    *,
    weight_bits: Bits = (2, 3, 4, 5, 6, 7, 8),
    activation_bits: Bits = 16,
    first_last_bits: int | None = None,
    pattern: str = "unstructured",
    min_density: float = 0.02,
    schedule: str = "gradual",
    mode: str = "both",
    init: str = "kmeans",
    pruning: Mapping[str, Any] | None = None,
    sparsification: Mapping[str, Any] | None = None,
    quantization: Mapping[str, Any] | None = None,
    **options: Any,
) -> JointCompression:
    """Prepares densities and codebook bits of one network as one learner.

    Args:
        model: Any trained network; it is copied and never changed.
        example_input: One batch as the network takes it.
        calibration: Batches for statistics.
        validation: Batches to evaluate candidates on.
        weight_bits: Bits of codebooks, a sequence is decided layer by layer, one number is fixed.
        activation_bits: Bits of layers' inputs; 16 leaves them in float, as the paper does.
        first_last_bits: Bits of the first and the last layer; ``None`` decides them like the
            others, whose codebooks are not larger than small layers can pay for.
        pattern: Of the zeros, see ``WeightSparsification``.
        min_density: Smallest density on offer.
        schedule: How :func:`compress_deeply` trains the sparse network.
        mode: What ``finetune`` of a finished network trains, see ``CodebookQuantization``.
        init: Where centroids start.
        pruning: Options of ``ChannelPruning`` to decide channels as well, ``{}`` for its defaults;
            ``None`` cuts none.
        sparsification: Further options of ``WeightSparsification``.
        quantization: Further options of ``CodebookQuantization``.
        **options: Those of ``CandidateOptions``, for all parts.

    Raises:
        InputDataError: If images, labels or weights are not what is expected.
        UntraceableModelError: If no layer can be sparse or quantized.
        ValueError: If an option has no such value.
    """
    told = JointOptions(
        quantizer="codebook",
        pruning=pruning,
        sparsification={
            "pattern": pattern,
            "min_density": min_density,
            "schedule": schedule,
            **(sparsification or {}),
        },
        quantization={
            "weight_bits": weight_bits,
            "activation_bits": activation_bits,
            "first_last_bits": first_last_bits,
            "mode": mode,
            "init": init,
            **(quantization or {}),
        },
        **options,
    )
    return prepare_joint(model, example_input, calibration, validation, told)


@dataclass(frozen=True)
class DeepStage:
    """What a network is like after one stage.

    Attributes:
        name: ``"original"``, ``"pruned"``, ``"retrained"``, ``"quantized"`` or ``"finetuned"``.
        score: On all validation samples, higher is better.
        bytes: Of the packed file; of the original the bytes of its tensors in float32.
    """

    name: str
    score: float
    bytes: int


@dataclass(frozen=True)
class DeeplyCompressed:
    """What :func:`compress_deeply` returns.

    Attributes:
        network: The finished network.
        stages: What it was like after each stage, the original first.
        packed: The content of its packed file.
    """

    network: nn.Module
    stages: tuple[DeepStage, ...]
    packed: bytes

    @property
    def factor(self) -> float:
        """How many times smaller than the float network the packed file is."""
        return self.stages[0].bytes / self.stages[-1].bytes


@checked
def compress_deeply(
    learner: JointCompression,
    plan: CompressionPlan,
    train_loader: Batches,
    *,
    retrain: bool = True,
    finetune: bool = True,
    retraining: TrainingConfig | None = None,
    finetuning: TrainingConfig | None = None,
    mode: str = "clusters",
    teacher: nn.Module | None = None,
    folder: Path | None = None,
    resume: bool = False,
    progress: bool = False,
) -> DeeplyCompressed:
    """Carries a plan out in the paper's order: prune, train, quantize, train the centroids, pack.

    ``learner.compress`` quantizes what has not been trained, which a search needs to be fast; here
    codebooks are fitted to the weights that training has settled on.

    Args:
        learner: What :func:`deep_compression` (or ``joint_compression`` with densities) returned.
        plan: Its decisions, complete.
        train_loader: Training batches.
        retrain: Whether to train the sparse network, in float.
        finetune: Whether to train the quantized network.
        retraining: Settings of the former; by default what ``WeightSparsification`` does.
        finetuning: Settings of the latter; by default the learner's own.
        mode: What the latter trains: ``"clusters"`` is the paper's, see ``set_mode``.
        teacher: Network to distil from in both.
        folder: Where both trainings keep their checkpoints, and the packed file goes.
        resume: Whether to resume there: finished trainings are not run again.
        progress: Whether to show progress bars.

    Raises:
        PlanMismatchError: If the plan does not fit.
        RunFolderError: If the folder holds another run, or cannot be written.
        TrainingDivergedError: If a loss is not finite.
        ValueError: If the learner decides no densities, or there is no such mode.
    """
    check_known("mode", mode, MODES)
    part = _densities(learner)
    plan.values_for(learner.decisions)
    stages = _Stages(learner, plan)
    network = _before_bits(learner, plan)
    stages.add("pruned", network)
    trained: dict[str, Any] = {"teacher": teacher, "resume": resume, "progress": progress}
    if retrain:
        config = part.training_defaults() if retraining is None else retraining
        hooks = _sparsity_hooks(part, learner, plan, network)
        place = None if folder is None else folder / "retraining"
        learner.finetune(
            network, train_loader, config=config, hooks=hooks, checkpoint_dir=place, **trained
        )
        stages.add("retrained", network)
    with limited_threads(learner.threads):
        network = learner.parts[-1].apply(network, plan_of(learner.parts[-1], plan))
    stages.add("quantized", network)
    if finetune:
        config = learner.training_defaults() if finetuning is None else finetuning
        set_mode(network, mode)
        place = None if folder is None else folder / "finetuning"
        learner.finetune(network, train_loader, config=config, checkpoint_dir=place, **trained)
        stages.add("finetuned", network)
    stages.warn_if_large()
    if folder is not None:
        save_bytes(folder / PACKED, stages.packed)
    return DeeplyCompressed(network, tuple(stages.done), stages.packed)


class _Stages:
    """Measures a network after each stage."""

    def __init__(self, learner: JointCompression, plan: CompressionPlan) -> None:
        self._learner = learner
        self._plan = plan
        self._kept = learner.kept_units(plan)
        self._example = next(iter(learner.validation))[0][:1]
        self.packed = b""
        original = learner.parts[0].original
        size = learner.cost_models["bytes"].original(learner.decisions)
        self.done = [DeepStage("original", self._score(original), round(size))]

    def _score(self, network: nn.Module) -> float:
        return self._learner.score(network, full=True)

    def add(self, name: str, network: nn.Module) -> None:
        """Evaluates and packs."""
        self.packed = packed_bytes(
            network, kept=self._kept, plan=self._plan, example_input=self._example
        )
        self.done.append(DeepStage(name, self._score(network), len(self.packed)))

    def warn_if_large(self) -> None:
        """Says so where the file is larger than what budgets have counted, and the tolerance."""
        learner = self._learner
        counted = learner.cost_models["bytes"](self._plan.values_for(learner.decisions))
        size = len(self.packed)
        if size > (1.0 + TOLERANCE) * counted + SLACK_BYTES:
            warnings.warn(
                f"The packed file has {size} bytes, {size / counted - 1:.1%} more than the "
                f"{counted:.0f} that budgets have counted for the plan.",
                stacklevel=3,
            )


def _densities(learner: JointCompression) -> WeightSparsification:
    for part in learner.parts:
        if isinstance(part, WeightSparsification):
            return part
    raise ValueError(
        f"Expected a learner that decides densities, got one that decides "
        f"{[part.name for part in learner.parts]}; prepare it with deep_compression."
    )


def _before_bits(learner: JointCompression, plan: CompressionPlan) -> nn.Module:
    with limited_threads(learner.threads):
        return apply_parts(learner.parts[:-1], plan, exact=True).requires_grad_(True)


def _sparsity_hooks(
    part: WeightSparsification,
    learner: JointCompression,
    plan: CompressionPlan,
    network: nn.Module,
) -> Sequence[TrainingHook]:
    """Returns the hooks of the sparse network's training.

    A network whose channels were cut starts from what stands behind its masks: the dense
    original's weights have other shapes.
    """
    dense = None if learner.kept_units(plan) else part.original.state_dict()
    return part.options.training_hooks(network, dense)
