"""The learner that compresses nothing: it trains the network that the others start from."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan, Decision
from learners.base import Batches, Learner
from learners.tracing import trace
from learners.training import TrainingConfig, TrainingResult, evaluate, train

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class FullPrecision(Learner):
    """No decisions, one plan (the empty one), and the training loop.

    Args:
        model: The network; :meth:`finetune` trains it in place.
        example_input: One batch of images, for the layer graph.
        validation: Batches that judge it.
        precision: ``"auto"``, ``"fp32"`` or ``"bf16"``.
        device: Where it runs.
    """

    def __init__(
        self,
        model: nn.Module,
        example_input: Tensor | tuple[Tensor, ...],
        validation: Batches,
        *,
        precision: str = "auto",
        device: str = "cpu",
    ) -> None:
        self.model = model
        self.validation = validation
        self.precision = precision
        self.device = device
        self.graph = trace(model, example_input).graph
        self.decisions: tuple[Decision, ...] = ()
        self.original_accuracy = self._accuracy()

    def evaluate(self, plan: CompressionPlan) -> float:
        """Return the accuracy of the network as it is now."""
        _check_empty(plan)
        return self._accuracy()

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Return a copy of the network."""
        _check_empty(plan)
        return copy.deepcopy(self.model).eval()

    def finetune(
        self,
        model: nn.Module,
        train_loader: Batches,
        *,
        epochs: int | None = None,
        teacher: nn.Module | None = None,
        config: TrainingConfig | None = None,
        validation: Batches | None = None,
        checkpoint_dir: Path | None = None,
        resume: bool = False,
        writer: SummaryWriter | None = None,
        progress: bool = False,
    ) -> TrainingResult:
        """Train ``model`` in place, from scratch or on; see :func:`learners.training.train`."""
        config = config or TrainingConfig(precision=self.precision)
        return train(
            model,
            train_loader,
            self.validation if validation is None else validation,
            config if epochs is None else replace(config, epochs=epochs),
            teacher=teacher,
            checkpoint_dir=checkpoint_dir,
            resume=resume,
            writer=writer,
            progress=progress,
            device=self.device,
        )

    def _accuracy(self) -> float:
        return evaluate(self.model, self.validation, precision=self.precision, device=self.device)


def _check_empty(plan: CompressionPlan) -> None:
    if len(plan):
        raise PlanMismatchError(
            f"The full-precision learner decides nothing: expected an empty plan, got "
            f"{len(plan)} values; use the learner that the plan was made with."
        )
