"""Base class of learners: how a plan becomes a smaller network, and how it is trained."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.wide_layers import wide_layers_note
from amc_compress.learners.networks.intake import Form, take_in
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.data_checks import Batches, check_weights
from amc_compress.learners.training.hooks import KeptStatistics, TrainingHook
from amc_compress.learners.training.loop import TrainingResult, train
from amc_env.costs.cost_model import CostModel
from amc_env.costs.storage import StorageFormat
from amc_env.graph import LayerGraph
from amc_env.plan import CompressionPlan, Decision
from amc_env.validation.checks import check_constructor, checked

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Learner(ABC):
    """One compression algorithm, prepared for one network and its data.

    A learner is all the environment needs (``amc_env.Compressible``), and what the user keeps
    afterwards: :meth:`compress` builds the network of a plan, :meth:`finetune` trains it.

    Attributes:
        graph: The layers and channel groups of the network.
        decisions: What can be chosen, in network order.
        task: What the network is for.
        original_score: Of the uncompressed network on the samples that :meth:`evaluate` uses;
            higher is better. For classification it is the accuracy, in [0, 1].
        validation: Batches that choose the best epoch of a fine-tuning.
        device: Where networks are trained.
        form: In which form the network came. Everything is computed on a plain float32 copy of it;
            :meth:`compress` hands back the types that came.
    """

    repairs_layers: ClassVar[bool] = False
    """Whether layers are fitted anew by least squares after a cut."""

    cost_models: Mapping[str, CostModel] = MappingProxyType({})
    """Costs that the learner knows better than ``amc_env.COSTS``, by name."""

    storage: StorageFormat | None = None
    """How networks of its plans are stored, as costs count them; ``None`` for float tensors."""

    keeps_statistics: bool = False
    """Whether batch norms keep the statistics of the original, in repairs and in training: those of
    the data at hand would spoil it."""

    cautions: tuple[str, ...] = ()
    """What was found out about the data while the learner was prepared, in sentences."""

    by_channel: Collection[str] = ()
    """Layers that are too wide for least squares over all inputs, and are repaired by channel."""

    form: Form = Form()
    graph: LayerGraph
    decisions: tuple[Decision, ...]
    original_score: float
    task: Task = CLASSIFICATION
    validation: Batches
    device: torch.device

    def __init_subclass__(cls, **options: Any) -> None:
        """Lets the constructor of every learner check its arguments by its annotations."""
        super().__init_subclass__(**options)
        check_constructor(cls)

    @property
    def metric(self) -> str:
        """Name of the metric that scores are made from."""
        return self.task.metric

    @property
    def higher_is_better(self) -> bool:
        """Whether a score is that metric; else it is its negative."""
        return self.task.higher_is_better

    @property
    def best_score(self) -> float | None:
        """The highest score there is; None if unknown."""
        return self.task.best_score

    @property
    def original_accuracy(self) -> float:
        """The score of the uncompressed network, by the name it has for classification."""
        return self.original_score

    @original_accuracy.setter
    def original_accuracy(self, value: float) -> None:
        self.original_score = value

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know of the network: form, fixed costs, layers not repaired."""
        wide = wide_layers_note(self.graph, self.by_channel) if self.repairs_layers else ()
        return (*self.form.notes, *self.graph.remarks(), *wide, *self.cautions)

    @abstractmethod
    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy score of a complete plan, higher is better; equal plans, equal numbers.

        For classification it is the accuracy, in [0, 1].

        As all methods that take a plan, it raises ``PlanMismatchError`` for one that does not fit.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """

    def evaluate_full(self, plan: CompressionPlan) -> float:
        """Returns the proxy score on all validation samples; see :meth:`evaluate`."""
        return self.evaluate(plan)

    def original_full_score(self) -> float:
        """Returns the score of the uncompressed network on all validation samples."""
        return self.original_score

    def kept_units(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Returns the units that stay, sorted, for every channel group that loses some."""
        return {}

    @abstractmethod
    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of a plan from the original weights, in ``eval`` mode.

        Its weights have the types of the network that was given: bfloat16 for bfloat16, float64
        for float64 (with the precision of the float32 in which it was built). Networks with
        quantized layers are in float32 whatever came: rounding a scale or a centroid again would
        change every weight that it stands for. Wrappers and parametrisations that were resolved
        do not come back.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """

    @checked
    def finetune(
        self,
        model: nn.Module,
        train_loader: Batches,
        *,
        epochs: int | None = None,
        teacher: nn.Module | None = None,
        hooks: Sequence[TrainingHook] = (),
        config: TrainingConfig | None = None,
        validation: Batches | None = None,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
        writer: SummaryWriter | None = None,
        progress: bool = False,
    ) -> TrainingResult:
        """Trains a compressed network in place; it ends with the weights of its best epoch.

        With those of its start if all epochs are worse; see ``learners.training.loop.train``.

        Float16, bfloat16 and float64 networks are trained in float32 and have their own types
        again afterwards; scores are those of the float32 weights.

        Args:
            model: What :meth:`compress` returned.
            train_loader: Training batches.
            epochs: Overrides the number in ``config``.
            teacher: Network to distil from, usually the original one.
            hooks: What happens besides the loss, see ``hooks``; the learner's own come
                first.
            config: All other settings.
            validation: Batches that choose the best epoch; the learner's own if not given.
            checkpoint_dir: Where to save after every epoch.
            resume: Whether to continue from there.
            writer: TensorBoard writer.
            progress: Whether to show a progress bar.
        """
        settings = config if config is not None else self.training_defaults()
        if epochs is not None:
            settings = replace(settings, epochs=epochs)
        return train(
            model,
            train_loader,
            validation if validation is not None else self.validation,
            settings,
            task=self.task,
            teacher=teacher,
            hooks=(*self.training_hooks(model), *hooks),
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            writer=writer,
            progress=progress,
            device=self.device,
        )

    def _take_in(self, model: nn.Module) -> nn.Module:
        """Returns a private plain float32 copy of the given network, on the learner's device.

        Raises:
            InputDataError: If a weight is NaN or infinite.
            UntraceableModelError: If it is in no form that can be taken in.
        """
        taken = take_in(model, self.device)
        self.form = taken.form
        check_weights(taken.network)
        return taken.network

    def training_hooks(self, model: nn.Module) -> Sequence[TrainingHook]:
        """What every training of a network of this learner needs besides the loss."""
        return (KeptStatistics(),) if self.keeps_statistics else ()

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        return TrainingConfig()
