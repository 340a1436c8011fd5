"""Plans and costs of a network that was cut before, in terms of the original one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from amc_compress.learners.channel_pruning import ChannelPruning
from amc_compress.learners.tracing.branches.left_out import DEPTH
from amc_env import Branch, Budget, CompressionPlan, Outcome, PlanMismatchError, make_cost
from amc_env.costs.canonical import VoidDecisions
from amc_env.costs.costs import CostModel, costs_for
from amc_env.kinds import Quantity
from amc_env.plan import Decision

# Bounds of a later stage are quotients; rounding must not let a plan over the original's bound.
_ROUNDING = 1e-12


class Composition:
    """Cuts made so far, to express the next plan in terms of the original network.

    Args:
        original: The learner prepared on the original network.
        kept: Channel group -> sorted units of the original that are left; ``"branch:depth"`` ->
            none, for branches that are left out.
    """

    def __init__(self, original: ChannelPruning, kept: Mapping[str, Tensor]) -> None:
        self.kept = dict(kept)
        self.graph = original.graph
        self.decisions: tuple[Decision, ...] = original.decisions
        self.costs: dict[str, CostModel] = {
            name: make_cost(name, original.graph, self.decisions)
            for name in costs_for(self.decisions)
        }
        self.original_cost = {n: c.original(self.decisions) for n, c in self.costs.items()}
        there = [0.0 if _is_depth(d) and d.key in kept else 1.0 for d in self.decisions]
        void = VoidDecisions(self.graph, self.decisions).of(there)
        self._void = {d.key for d, is_void in zip(self.decisions, void, strict=True) if is_void}
        self._branches: dict[str, str] = {}  # decision about a branch, there -> in the original

    def sizes(self) -> dict[str, int]:
        """Returns the units that are left of every group; none of those that went with a branch."""
        return {
            d.target: len(self.kept[d.target]) if d.target in self.kept else d.size
            for d in self.decisions
            if not _is_depth(d) and d.key not in self._void
        }

    def next_decisions(
        self, found: Sequence[Decision], branches: Sequence[Branch] = ()
    ) -> tuple[Decision, ...]:
        """Returns the decisions about the smaller network that are legal for the original too.

        Branches are found again by their layers; one that is not stays.

        Args:
            found: Those of a learner prepared on the smaller network.
            branches: Of that network.

        Raises:
            PlanMismatchError: If its channel groups are not those of the original, by name.
        """
        sizes = {d.target: d.size for d in found if not _is_depth(d)}
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
        self._branches = self._found_again(branches)
        whole = {d.key: d for d in self.decisions}
        return tuple(
            d if _is_depth(d) else _legal(d, whole[d.key])
            for d in found
            if not _is_depth(d) or d.key in self._branches
        )

    def _found_again(self, branches: Sequence[Branch]) -> dict[str, str]:
        """Returns the key of a decision about a branch of the smaller network -> in the original.

        Their names may be others: they tell a branch from those that are there.
        """
        decided = [d for d in self.decisions if _is_depth(d)]
        gone = {
            x for d in decided if d.key in self.kept for x in self.graph.branch(d.target).layers
        }
        left = {
            frozenset(self.graph.branch(d.target).layers) - gone: d.key
            for d in decided
            if d.key not in self.kept and d.key not in self._void
        }
        found = {f"{b.name}{DEPTH}": left.get(frozenset(b.layers)) for b in branches}
        return {key: original for key, original in found.items() if original is not None}

    def in_original(self, plan: CompressionPlan, decisions: Sequence[Decision]) -> CompressionPlan:
        """Returns a plan of the smaller network as one of the original."""
        names, sizes = self._branches, {d.key: d.size for d in self.decisions}
        values = dict(self._before())
        for d, value in zip(decisions, plan.values_for(decisions), strict=True):
            key = names.get(d.key, d.key)
            values[key] = value if _is_depth(d) else d.units(value) / sizes[key]
        return CompressionPlan(values)

    def in_smaller(self, plan: CompressionPlan, decisions: Sequence[Decision]) -> CompressionPlan:
        """Returns a plan of the original as one of the smaller network."""
        made = zip(self.decisions, plan.values_for(self.decisions), strict=True)
        found = {d.key: v if _is_depth(d) else d.units(v) for d, v in made}
        values = {}
        for d in decisions:
            value = found[self._branches.get(d.key, d.key)]
            values[d.key] = value if _is_depth(d) else value / d.size
        return CompressionPlan(values)

    def _before(self) -> CompressionPlan:
        """The plan of the network that is left so far."""
        sizes = self.sizes()
        return CompressionPlan(
            {
                d.key: float(d.key not in self.kept)
                if _is_depth(d)
                else sizes.get(d.target, d.size) / d.size
                for d in self.decisions
            }
        )

    def cost(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns the absolute costs of a plan of the original."""
        values = plan.values_for(self.decisions)
        return {name: cost(values) for name, cost in self.costs.items()}

    def ratio(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns its costs as shares of the original's."""
        return {name: cost / self.original_cost[name] for name, cost in self.cost(plan).items()}

    def budget(self, budget: Budget) -> Budget:
        """Returns a budget of the original in shares of what is left."""
        left = self.ratio(self._before())
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
            kept: Channel group -> sorted units of the smaller network that stay, and branches
                that do not.
        """
        composed = {
            self._branches.get(name, name): self.kept[name][index] if name in self.kept else index
            for name, index in kept.items()
        }
        return {**self.kept, **composed}


def _is_depth(decision: Decision) -> bool:
    return decision.kind.quantity is Quantity.PRESENCE


def _legal(decision: Decision, whole: Decision) -> Decision:
    """A decision about the smaller network without choices that the original has not."""
    choices = (c for c in decision.choices if whole.is_legal(decision.units(c) / whole.size))
    return replace(decision, choices=tuple(choices))
