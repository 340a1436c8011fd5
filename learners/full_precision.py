"""A learner without compression: trains the full-precision network."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches, Learner
from amc_compress.learners.candidates.gradient_scores import Scores
from amc_compress.learners.networks.intake import take_in
from amc_compress.learners.tracing.traced_model import trace
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate
from amc_env.errors import PlanMismatchError
from amc_env.plan import CompressionPlan, Decision


class FullPrecision(Learner):
    """No decisions, one plan (the empty one), and the training loop.

    Args:
        model: The network; :meth:`finetune` trains it in place.
        example_input: One batch of images, for the layer graph.
        validation: Batches that it is evaluated on.
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
        self.device = torch.device(device)
        taken = take_in(model)
        self.form = taken.form
        self.graph = trace(taken.network, example_input).graph
        self.decisions: tuple[Decision, ...] = ()
        self.original_accuracy = self._accuracy()

    def evaluate(self, plan: CompressionPlan) -> float:
        """Return the accuracy of the network as it is now."""
        _check_empty(plan)
        return self._accuracy()

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Return a copy of the network as it is now, plain and in its own types."""
        _check_empty(plan)
        taken = take_in(self.model)
        return taken.form.hand_back(taken.network)

    def gradient_scores(self) -> Scores:
        """Return no curves: nothing is decided."""
        return {}

    def _training_defaults(self) -> TrainingConfig:
        return TrainingConfig(precision=self.precision)

    def _accuracy(self) -> float:
        return evaluate(self.model, self.validation, precision=self.precision, device=self.device)


def _check_empty(plan: CompressionPlan) -> None:
    if len(plan):
        raise PlanMismatchError(
            f"The full-precision learner decides nothing: expected an empty plan, got "
            f"{len(plan)} values; use the learner that the plan was made with."
        )
