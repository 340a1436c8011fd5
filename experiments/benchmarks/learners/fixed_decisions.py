"""A learner with some decisions fixed: the rest is searched, all of it evaluated."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from amc_compress.learners.base import Learner
from amc_compress.learners.training.config import TrainingConfig
from amc_env.costs.costs import COSTS, CostModel, make_cost, original_cost
from amc_env.errors import PlanMismatchError
from amc_env.plan import CURVES, CompressionPlan, Decision
from amc_env.scores.compressible import Compressible


class FixedDecisions(Learner):
    """A view of a learner in which some decisions are fixed and the others are free.

    Its plans hold the free decisions only; :meth:`whole` adds the others. Costs are those of the
    whole plan, and ratios of the uncompressed network, so that a budget means the same in the view
    as in the learner itself. Searching in stages is a chain of such views.

    Args:
        learner: The learner with all decisions.
        fixed: Decision key -> value, from the grid.
        assumed: Values that costs count for fixed decisions instead of those in ``fixed``, where a
            later stage will decide them anew: with the smallest bit-widths here, a bound on bytes
            asks only that the later stage can still meet it.

    Raises:
        PlanMismatchError: If a key is unknown or a value is off the grid.
        ValueError: If nothing is left to decide.

    Example:
        >>> channels = FixedDecisions(joint, {"conv1:weight_bits": 8.0})  # doctest: +SKIP
    """

    def __init__(
        self,
        learner: Learner,
        fixed: Mapping[str, float],
        *,
        assumed: Mapping[str, float] | None = None,
    ) -> None:
        full = dict(CompressionPlan.full(learner.decisions))
        for values in (fixed, assumed or {}):
            CompressionPlan({**full, **values}).values_for(learner.decisions)
        if foreign := sorted((assumed or {}).keys() - fixed.keys()):
            raise PlanMismatchError(f"Expected assumptions about fixed decisions, got {foreign}.")
        self.learner = learner
        self.fixed = dict(fixed)
        self.graph = learner.graph
        self.decisions: tuple[Decision, ...] = tuple(
            d for d in learner.decisions if d.key not in self.fixed
        )
        if not self.decisions:
            raise ValueError("Expected at least one decision that is not fixed, got none.")
        self.original_score = learner.original_score
        self.task = learner.task
        self.validation = learner.validation
        self.device = learner.device
        self.form = learner.form
        self.cost_models = whole_costs(learner, self.fixed | dict(assumed or {}))

    def whole(self, plan: CompressionPlan) -> CompressionPlan:
        """Returns the learner's plan: the free decisions of ``plan`` and the fixed ones.

        Raises:
            PlanMismatchError: If the plan is none of the free decisions.
        """
        free = dict(
            zip((d.key for d in self.decisions), plan.values_for(self.decisions), strict=True)
        )
        return CompressionPlan({d.key: (free | self.fixed)[d.key] for d in self.learner.decisions})

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy of the whole plan, in [0, 1].

        Raises:
            PlanMismatchError: If the plan does not fit.
            TrainingDivergedError: If the candidate's outputs are not finite.
        """
        return self.learner.evaluate(self.whole(plan))

    def compress(self, plan: CompressionPlan) -> nn.Module:
        """Builds the network of the whole plan.

        Raises:
            PlanMismatchError: If the plan does not fit.
        """
        return self.learner.compress(self.whole(plan))

    def evaluate_full(self, plan: CompressionPlan) -> float:
        """Returns the proxy accuracy of the whole plan on all validation images, in [0, 1]."""
        return self.learner.evaluate_full(self.whole(plan))

    def kept_units(self, plan: CompressionPlan) -> dict[str, Tensor]:
        """Returns the units that stay, sorted, for every group that loses some."""
        return self.learner.kept_units(self.whole(plan))

    def __getattr__(self, name: str) -> Any:
        """Offers ``layer_errors`` and ``gradient_scores`` of the free decisions, where they are."""
        if name not in CURVES or "learner" not in vars(self):
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        curves, free = getattr(self.learner, name), {d.key for d in self.decisions}
        return lambda: {key: curve for key, curve in curves().items() if key in free}

    def training_defaults(self) -> TrainingConfig:
        """The settings of :meth:`finetune` where none are given."""
        return self.learner.training_defaults()


def whole_costs(learner: Compressible, fixed: Mapping[str, float]) -> dict[str, CostModel]:
    """Returns the costs of a learner's whole plans as functions of the free decisions.

    Args:
        learner: With all decisions.
        fixed: Decision key -> what costs count for it.
    """
    models: dict[str, CostModel] = {
        name: make_cost(name, learner.graph, learner.decisions) for name in COSTS
    } | dict(getattr(learner, "cost_models", {}))
    return {name: _WholeCost(model, learner.decisions, fixed) for name, model in models.items()}


class _WholeCost(CostModel):
    """A cost of all decisions as a function of the free ones."""

    def __init__(
        self, model: CostModel, decisions: Sequence[Decision], fixed: Mapping[str, float]
    ) -> None:
        self.name = model.name
        self._model = model
        self._decisions = tuple(decisions)
        self._values = np.array([fixed.get(d.key, np.nan) for d in decisions])
        self._free = np.flatnonzero(np.isnan(self._values))

    def __call__(self, values: Sequence[float] | npt.NDArray[np.float64]) -> float:
        whole = self._values.copy()
        whole[self._free] = values
        return self._model(whole)

    def original(self, decisions: Sequence[Decision]) -> float:
        """Returns the cost of the uncompressed network."""
        return original_cost(self._model, self._decisions)
