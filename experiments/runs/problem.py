"""Decisions and costs of a run, computed from the network alone, without data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import own_cost_references
from amc_compress.learners.tracing.traced_model import TracedModel
from amc_compress.runs.learner_factory import search_space
from amc_compress.runs.packed_header import header_bytes
from amc_env import (
    Budget,
    CompressionPlan,
    InfeasibleBudgetError,
    make_cost,
)
from amc_env.budgets.feasible import FeasibleSet
from amc_env.costs.costs import COSTS, CostModel
from amc_env.costs.entered_cost import entered
from amc_env.costs.latency import load_cost_models
from amc_env.costs.own_costs import own_costs
from amc_env.costs.storage import StorageFormat
from amc_env.graph import LayerGraph
from amc_env.plan import Decision, DecisionKind
from amc_env.reward import Result, resolve_reward

_ROOM = 1.25
"""How far the estimated bytes of sparse networks may be from the measured ones."""


@dataclass(frozen=True)
class Problem:
    """The decisions of a run and the costs of its plans.

    Args:
        graph: Facts about the original network.
        decisions: What is decided, in the order of the search; possibly nothing.
        costs: Cost name -> model.
    """

    graph: LayerGraph
    decisions: tuple[Decision, ...]
    costs: Mapping[str, CostModel]

    def cost(self, plan: CompressionPlan) -> dict[str, float]:
        """Returns the absolute costs of a complete plan.

        Raises:
            PlanMismatchError: If the plan does not fit.
        """
        values = plan.values_for(self.decisions)
        return {name: cost(values) for name, cost in self.costs.items()}

    @property
    def further(self) -> dict[str, CostModel]:
        """The costs that come from tables, or are the user's own."""
        return {name: cost for name, cost in self.costs.items() if name not in COSTS}

    def original(self) -> dict[str, float]:
        """Returns the absolute costs of the uncompressed network."""
        return {name: cost.original(self.decisions) for name, cost in self.costs.items()}


def make_problem(
    config: RunConfig,
    traced: TracedModel,
    *,
    tables: bool = True,
    example: Tensor | None = None,
) -> Problem:
    """Returns what the learner of these options will decide about a network.

    Args:
        config: The options.
        traced: The original network.
        tables: Whether to read the cost tables, and to build the costs of ``--cost``.
        example: A batch as the network takes it, to count the packed file's header in the bytes;
            without it they are a few hundred too few.

    Raises:
        UntraceableModelError: If nothing of the network can be cut, and cutting is asked for.
    """
    space = search_space(config, traced)
    decisions, storage = space.decisions, space.storage
    if storage is not None and example is not None:
        storage = replace(storage, fixed_bytes=header_bytes(_like(config), traced.model, example))
    graph = traced.graph
    costs: dict[str, CostModel] = {
        name: make_cost(name, graph, decisions, storage) for name in COSTS
    }
    if tables:
        costs |= read_tables(config, graph, decisions, storage)
        costs |= _own_costs(config, costs, graph, decisions, storage)
    return Problem(graph, decisions, costs)


def _like(config: RunConfig) -> RunConfig:
    """The options whose packed files have such headers."""
    return replace(config, learner="codebook") if config.learner == "deep" else config


def check_feasible(config: RunConfig, problem: Problem) -> None:
    """Rejects a budget that no plan meets, and a reward that needs an unknown cost.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        ValueError: If the budget or the reward asks for a cost that is not there.
    """
    budget = Budget.parse(config.budget)
    for cost in budget.bounds:
        if cost not in problem.costs:
            raise ValueError(
                f"Unknown cost {cost!r} in --budget; expected one of {', '.join(problem.costs)}, "
                f"one from a table given by --cost-table (`amc latency-table` makes them), or one "
                f"of your own, --cost {cost}=module:Class."
            )
    if problem.decisions:
        known = _known_bounds(budget, problem)
        FeasibleSet(known, problem.costs, problem.decisions, problem.graph.remarks())
    else:
        check_the_only_plan(budget, problem)
    ratios = dict.fromkeys(problem.costs, 1.0)
    targets = {name: upper for name, (_, upper) in budget.bounds.items()}
    resolve_reward(config.reward)(Result(0.5, 0.5, problem.original(), ratios, targets))


def _known_bounds(budget: Budget, problem: Problem) -> Budget:
    """The budget, with room for what only the prepared learner knows.

    The bytes of sparse layers are estimates until entropy coding has been measured; what the
    learner can meet must not be rejected here, and what it cannot, it rejects itself.
    """
    if not any(d.kind is DecisionKind.DENSITY for d in problem.decisions):
        return budget
    bounds = dict(budget.bounds)
    if "bytes" in bounds:
        lower, upper = bounds["bytes"]
        bounds["bytes"] = (lower / _ROOM, min(1.0, upper * _ROOM))
    return Budget(**bounds)


def check_the_only_plan(
    budget: Budget, problem: Problem, plan: CompressionPlan | None = None
) -> None:
    """Rejects a budget that fixed bits, or the plan of a rule, break.

    Raises:
        InfeasibleBudgetError: If they do.
    """
    original = problem.original()
    cost = problem.cost(plan or CompressionPlan({}))
    ratio = {name: value / original[name] for name, value in cost.items()}
    if not budget.is_met(ratio):
        found = ", ".join(f"{name} {ratio[name]:.4f}" for name in budget.bounds)
        if plan:
            raise InfeasibleBudgetError(
                f"The rule comes to {found}, and that breaks {budget!r}; let an agent meet the "
                f"budget: --protocol searched."
            )
        raise InfeasibleBudgetError(
            f"All bits are fixed, and with them the costs: {found}; that breaks {budget!r}. Leave "
            f"the budget out, or let bits be decided, e.g. --weight-bits 2-8."
        )


def _own_costs(
    config: RunConfig,
    known: Mapping[str, CostModel],
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None,
) -> Mapping[str, CostModel]:
    """Returns the costs of ``--cost``: name -> model."""
    references = own_cost_references(config.cost)
    if twice := sorted(references.keys() & known.keys()):
        raise ValueError(
            f"Expected --cost and --cost-table with different costs, got two of {twice[0]}; choose "
            f"another name."
        )
    return entered(own_costs(references, graph, decisions, storage), decisions)


def read_tables(
    config: RunConfig,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None,
) -> Mapping[str, CostModel]:
    """Returns the costs of ``--cost-table``: name -> model."""
    if not config.cost_table:
        return {}
    paths = [Path(path) for path in config.cost_table]
    return load_cost_models(paths, graph, decisions, storage)


MOST_STAGES = 100


def stage_budgets(budget: Budget, stages: int | Sequence[float]) -> list[Budget]:
    """Returns the budgets of the stages; the last one is the budget itself.

    Args:
        budget: Of the finished network.
        stages: How many: upper bounds then fall from 1 in equal ratios. Or the upper bounds of
            the first cost, falling; those of the other costs fall in step. Lower bounds are those
            of the budget in every stage, so that none takes away too much.

    Raises:
        ValueError: If the bounds do not fall from 1 to the budget.
    """
    name, (_, upper) = next(iter(budget.bounds.items()))
    if isinstance(stages, int):
        if not 1 <= stages <= MOST_STAGES:
            raise ValueError(f"Expected 1 to {MOST_STAGES} stages, got {stages}.")
        parts = [(k + 1) / stages for k in range(stages - 1)]
    else:
        shares = [share for share in stages if not math.isclose(share, upper)]
        if not all(a > b for a, b in zip([1.0, *shares], [*shares, upper], strict=True)):
            raise ValueError(
                f"Expected stages that fall from 1 to {name}={upper:g}, got "
                f"{','.join(f'{share:g}' for share in stages)}."
            )
        parts = [math.log(share) / math.log(upper) for share in shares]
    on_the_way = [
        Budget(**{n: (low, round(high**part, 4)) for n, (low, high) in budget.bounds.items()})
        for part in parts
    ]
    return [*on_the_way, budget]
