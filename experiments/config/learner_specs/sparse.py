"""The learner that sets single weights to zero."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from amc_compress.config.learner_specs.base import Images, LearnerSpec
from amc_compress.config.values import of_how_many

if TYPE_CHECKING:
    from torch import nn

    from amc_compress.learners.base import Learner
    from amc_compress.learners.training.hooks import TrainingHook
    from amc_env import Budget, CompressionPlan

# Steps from one set of masks to the next (Zhu & Gupta 2017 take 100 to 1000), and how many sets
# there are at least: in a short training one hundred steps are all of it.
_FREQUENCY, _LEAST_UPDATES = 100, 20


class SparseSpec(LearnerSpec):
    """Weight pruning: an agent or a rule spreads the density over the layers."""

    title = "Weight pruning"
    path = "sparsification:WeightSparsification"
    takes = ("pattern", "min_density", "repair")
    sparsifies = True

    @property
    def decides(self) -> bool:
        """Whether an agent has a choice, and not a rule."""
        return self.options.protocol == "searched"

    def default_budget(self) -> str:
        """Returns a quarter of the weights, or more where the pattern keeps more."""
        if (n_of_m := of_how_many(self.options.pattern)) is None:
            return f"density={max(0.25, self.options.min_density):.4g}"
        # No layer keeps less than that, and those whose inputs are no multiple of M keep all.
        least = n_of_m[0] / n_of_m[1]
        return f"density={max(0.25, 0.9 * least + 0.1):.4g}"

    def check(self) -> None:
        """Checks that a rule has one density to distribute."""
        super().check()
        o = self.options
        if not self.decides and (o.budget.names != ["density"] or o.budget.limits):
            raise ValueError(
                f"--protocol {o.protocol} distributes one density over the layers; expected "
                f"--budget density=0.25 or the like, got {o.budget}. An agent meets other "
                f"budgets: --protocol searched."
            )

    def schedule(self, total_steps: int) -> dict[str, Any]:
        """Returns how zeros grow in a training of so many steps."""
        o = self.options
        steps = (o.schedule_end - o.schedule_begin) * total_steps
        usual = min(_FREQUENCY, max(1, int(steps / _LEAST_UPDATES)))
        return {
            "schedule": o.schedule,
            "schedule_begin": o.schedule_begin,
            "schedule_end": o.schedule_end,
            "schedule_exponent": o.schedule_exponent,
            "schedule_frequency": o.schedule_frequency or usual,
        }

    def _keywords(self, data: Images, progress: bool) -> dict[str, Any]:
        steps = max(self.options.epochs, 1) * len(data.train)
        return super()._keywords(data, progress) | self.schedule(steps)

    def only_plan(self, learner: Learner, budget: Budget) -> CompressionPlan:
        """Returns the plan of the rule."""
        from amc_compress.learners.sparsification import WeightSparsification

        if not isinstance(learner, WeightSparsification):
            raise TypeError(f"Expected a weight sparsification, got {type(learner).__name__}.")
        return learner.plan_for(self.options.protocol, budget.bounds["density"][1])

    def fixed_choice(self) -> str:
        """Returns the name of the rule."""
        return f"density by rule: {self.options.protocol}"

    def hooks(
        self, original: nn.Module, model: nn.Module, total_steps: int
    ) -> tuple[TrainingHook, ...]:
        """Returns what lets the zeros grow."""
        from amc_compress.learners.sparsification.learner import SparseOptions

        options = SparseOptions(**self.own_options(), **self.schedule(total_steps))
        return options.training_hooks(model, original.state_dict())
