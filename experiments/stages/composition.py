"""Plans and costs of a network that was cut before, in terms of the original one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from amc_compress.learners.channel_pruning import ChannelPruning
from amc_env import Budget, CompressionPlan, Outcome, PlanMismatchError, make_cost
from amc_env.costs.costs import COSTS, CostModel
from amc_env.plan import Decision

# Bounds of a later stage are quotients; rounding must not let a plan over the original's bound.
_ROUNDING = 1e-12


class Composition:
    """Cuts made so far, to express the next plan in terms of the original network.

    Args:
        original: The learner prepared on the original network.
        kept: Channel group -> sorted units of the original that are left.
    """

    def __init__(self, original: ChannelPruning, kept: Mapping[str, Tensor]) -> None:
        self.kept = dict(kept)
        self.decisions: tuple[Decision, ...] = original.decisions
        self.costs: dict[str, CostModel] = {
            name: make_cost(name, original.graph, self.decisions) for name in COSTS
        }
        self.original_cost = {n: c.original(self.decisions) for n, c in self.costs.items()}

    def sizes(self) -> dict[str, int]:
        """Returns the units that are left of every group."""
        return {
            d.target: len(self.kept[d.target]) if d.target in self.kept else d.size
            for d in self.decisions
        }

    def next_decisions(self, found: Sequence[Decision]) -> tuple[Decision, ...]:
        """Returns the decisions about the smaller network that are legal for the original too.

        Args:
            found: Those of a learner prepared on the smaller network.

        Raises:
            PlanMismatchError: If its channel groups are not those of the original, by name.
        """
        sizes = {d.target: d.size for d in found}
        if sizes != self.sizes():
            odd = sorted(
                name
                for name in sizes.keys() | self.sizes().keys()
                if sizes.get(name) != self.sizes().get(name)
            )
            raise PlanMismatchError(
                f"Expected the channel groups of the original in the network of the last stage, "
                f"found others: {', '.join(odd)}; its forward has channel numbers that can be "
                f"rewritten only once, so cut this network in one stage."
            )
        whole = {d.target: d for d in self.decisions}
        return tuple(
            replace(
                d,
                choices=tuple(
                    c for c in d.choices if whole[d.target].is_legal(d.units(c) / whole_size)
                ),
            )
            for d in found
            for whole_size in (whole[d.target].size,)
        )

    def in_original(self, plan: CompressionPlan, decisions: Sequence[Decision]) -> CompressionPlan:
        """Returns a plan of the smaller network as keep ratios of the original."""
        values = plan.values_for(decisions)
        counts = {d.key: d.units(v) for d, v in zip(decisions, values, strict=True)}
        return CompressionPlan({d.key: counts[d.key] / d.size for d in self.decisions})

    def in_smaller(self, plan: CompressionPlan, decisions: Sequence[Decision]) -> CompressionPlan:
        """Returns keep ratios of the original as a plan of the smaller network."""
        values = plan.values_for(self.decisions)
        counts = {d.key: d.units(v) for d, v in zip(self.decisions, values, strict=True)}
        return CompressionPlan({d.key: counts[d.key] / d.size for d in decisions})

    def cost(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns the absolute costs of a plan in keep ratios of the original."""
        values = plan.values_for(self.decisions)
        return {name: cost(values) for name, cost in self.costs.items()}

    def ratio(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns its costs as shares of the original's."""
        return {name: cost / self.original_cost[name] for name, cost in self.cost(plan).items()}

    def budget(self, budget: Budget) -> Budget:
        """Returns a budget of the original in shares of what is left."""
        sizes = self.sizes()
        left = self.ratio(
            CompressionPlan({d.key: sizes[d.target] / d.size for d in self.decisions})
        )
        bounds = {}
        for name, (lower, upper) in budget.bounds.items():
            highest = min(1.0, upper / left[name] * (1.0 - _ROUNDING))
            bounds[name] = (min(highest, lower / left[name] * (1.0 + _ROUNDING)), highest)
        return Budget(**bounds)

    def outcome(self, outcome: Outcome, decisions: Sequence[Decision]) -> Outcome:
        """Returns an outcome of the smaller network with plan and costs of the original."""
        plan = self.in_original(outcome.plan, decisions)
        return replace(outcome, plan=plan, cost=self.cost(plan), cost_ratio=self.ratio(plan))

    def with_kept(self, kept: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Returns which units of the original are left after a further cut.

        Args:
            kept: Channel group -> sorted units of the smaller network that stay.
        """
        composed = {
            name: self.kept[name][index] if name in self.kept else index
            for name, index in kept.items()
        }
        return {**self.kept, **composed}
