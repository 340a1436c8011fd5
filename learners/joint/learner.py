"""Several kinds of compression decided in one episode: channels, densities, bits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from amc_compress.learners.candidates.evaluator import NetworkEvaluator
from amc_compress.learners.candidates.kept_curves import kept
from amc_compress.learners.candidates.learner import CandidateLearner
from amc_compress.learners.candidates.proxy import Proxy, finetune_briefly
from amc_compress.learners.candidates.space import SearchSpace
from amc_compress.learners.candidates.timing import CandidateSeconds
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_compress.learners.joint.one_sweep import prune_and_round, sweeps_once
from amc_compress.learners.joint.options import JointOptions
from amc_compress.learners.joint.parts import (
    ErrorCurves,
    PlanPart,
    check_same_network,
    in_network_order,
    plan_of,
    scores_of,
)
from amc_compress.learners.networks.intake import Form
from amc_compress.learners.quantization.preparation import QUANTIZED_GRADIENT_CLIP
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Split
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches
from amc_env.costs.costs import costs_for, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.plan import CompressionPlan, Decision
from amc_env.support.threads import limited_threads


@dataclass(frozen=True)
class BriefTraining:
    """SGD steps that a finished candidate takes before it is evaluated.

    Args:
        batches: The same for every candidate.
        steps: How many; 0 for none.
        dtype: Type to compute in.
        seed: Of dropout.
        task: Whose loss it is.
    """

    batches: Sequence[Split] = ()
    steps: int = 0
    dtype: torch.dtype = torch.float32
    seed: int = 0
    task: Task = CLASSIFICATION

    def run(self, network: nn.Module) -> None:
        """Trains in place.

        Raises:
            TrainingDivergedError: If the loss is not finite.
        """
        if self.steps:
            proxy = Proxy(finetune_steps=self.steps, gradient_clip=QUANTIZED_GRADIENT_CLIP)
            finetune_briefly(network, self.batches, proxy, self.dtype, self.seed, self.task)


class JointCompression(CandidateLearner[CompressionPlan]):
    """Decides several kinds of compression at once, interleaved by depth.

    Args:
        parts: What can be decided, in the order in which it is carried out, see
            ``PlanPart``: channel pruning first, quantization last.
        evaluator: Measures scores.
        storage: How the finished network is stored, for the costs.
        validation: Batches that choose the best epoch of a fine-tuning.
        training: What a candidate gets before it is evaluated, besides the repairs of its parts.
        settings: What :meth:`finetune` does where nothing else is said.
        device: Where networks are trained.
        threads: Threads while candidates are made; ``None`` leaves PyTorch's setting alone.

    Attributes:
        parts: As given.
        storage: As given.
        cost_models: Costs of all decisions together, those that count bits included.
        seconds: What candidates have cost so far, by part.

    Raises:
        ValueError: If the parts were prepared for different networks, or decide about the same.
    """

    Options = JointOptions

    def __init__(
        self,
        parts: Sequence[PlanPart],
        evaluator: NetworkEvaluator,
        *,
        storage: StorageFormat | None = None,
        validation: Batches = (),
        training: BriefTraining | None = None,
        settings: TrainingConfig | None = None,
        device: str | torch.device = "cpu",
        threads: int | None = 1,
    ) -> None:
        self.parts = tuple(parts)
        check_same_network(self.parts)
        # The first part's: what later parts call a layer is a layer of it, with the widths that
        # the keep ratios move, in the branches that may be left out.
        self.graph = self.parts[0].graph
        self.decisions: tuple[Decision, ...] = in_network_order(
            self.graph, [part.decisions for part in self.parts]
        )
        self.form = getattr(parts[0], "form", Form())
        found = (text for part in self.parts for text in getattr(part, "cautions", ()))
        self.keeps_statistics = any(getattr(x, "keeps_statistics", False) for x in self.parts)
        self.cautions = tuple(dict.fromkeys(found))
        self.evaluator = evaluator
        self.original_score = evaluator.original_score
        self.task = evaluator.task
        self.storage = storage
        self.cost_models = {
            name: make_cost(name, self.graph, self.decisions, storage)
            for name in costs_for(self.decisions)
        }
        self.validation = validation
        self.training = training or BriefTraining()
        self._settings = settings or TrainingConfig()
        self.device = torch.device(device)
        self.threads = threads
        self.seconds = CandidateSeconds()

    @classmethod
    def decide(cls, traced: TracedModel, options: JointOptions) -> SearchSpace:
        """Returns what a learner of these options decides, see ``PartLearner.decide``.

        The storage is that of the quantized layers.
        """
        spaces = [kind.decide(traced, kind.Options(**given)) for kind, given in options.parts()]
        decisions = in_network_order(traced.graph, [space.decisions for space in spaces])
        notes = tuple(note for space in spaces for note in space.notes)
        return SearchSpace(decisions, spaces[-1].storage, notes=notes)

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network, and of what the parts leave as it is."""
        found = dict.fromkeys(super().notes)
        for part in self.parts:
            found |= dict.fromkeys(getattr(part, "notes", ()))
        return tuple(found)

    @property
    def original(self) -> nn.Module:
        """The uncompressed network, in ``eval`` mode; not to be changed."""
        return self.parts[0].original

    def _read(self, plan: CompressionPlan) -> CompressionPlan:
        plan.values_for(self.decisions)  # foreign keys, which no part would see, are an error
        return plan

    def _is_untouched(self, choice: CompressionPlan) -> bool:
        return False

    @property
    def _brief_steps(self) -> int:
        return self.training.steps

    def _candidate(
        self, choice: CompressionPlan, seconds: CandidateSeconds, *, trained: bool = True
    ) -> nn.Module:
        network = apply_parts(self.parts, choice, exact=False, seconds=seconds)
        if trained and self.training.steps:
            with seconds.measure("finetuning"):
                self.training.run(network)
        return network

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan: every part applied in turn, not fine-tuned.

        Always from the original weights; equal plans give equal networks. In float32 where it has
        quantized layers, else in the types that came.
        """
        with limited_threads(self.threads):
            return self.form.hand_back(apply_parts(self.parts, self._read(plan), exact=True))

    def kept_units(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Returns the units that stay, sorted, for every group that loses some."""
        return kept_units(self.parts, self._read(plan))

    @kept
    def layer_errors(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns the error curves of all parts: decision key -> error of every choice."""
        curves: ErrorCurves = {}
        for part in self.parts:
            curves |= part.layer_errors()
        return {d.key: curves[d.key] for d in self.decisions}

    @kept
    def gradient_scores(self) -> dict[str, npt.NDArray[np.float64]]:
        """Returns how much the loss rises by each choice of each decision, estimated in nats.

        The curves of all parts, each while all else of the original is whole; on one scale, see
        ``amc_compress.learners.candidates.gradient_scores``.

        Raises:
            CompressionError: If a part offers none.
        """
        curves: ErrorCurves = {}
        for part in self.parts:
            curves |= scores_of(part)
        return {d.key: curves[d.key] for d in self.decisions}

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        return self._settings


def kept_units(parts: Sequence[PlanPart], plan: CompressionPlan) -> dict[str, Tensor]:
    """Returns the units that stay, sorted, for every group that loses some.

    Raises:
        PlanMismatchError: If the plan lacks a decision, or has a value off the grid.
    """
    kept: dict[str, Tensor] = {}
    for part in parts:
        if isinstance(part, ChannelPruning):
            kept |= part.kept_units(plan_of(part, plan))
    return kept


def apply_parts(
    parts: Sequence[PlanPart],
    plan: CompressionPlan,
    *,
    exact: bool,
    seconds: CandidateSeconds | None = None,
) -> nn.Module:
    """Returns what the parts make of the original, in turn.

    Args:
        parts: In the order in which they are carried out.
        plan: The decisions of all parts.
        exact: See ``PlanPart.apply``.
        seconds: Where to add what each part took.

    Raises:
        PlanMismatchError: If the plan lacks a decision, or has a value off the grid.
    """
    network, seconds = parts[0].original, seconds or CandidateSeconds()
    once = sweeps_once(parts)
    for part in parts[:-2] if once else parts:
        with seconds.measure(part.name):
            network = part.apply(network, plan_of(part, plan), exact=exact)
    if once:
        with seconds.measure(parts[-1].name):
            network = prune_and_round(parts, network, plan, exact=exact)
    return network
