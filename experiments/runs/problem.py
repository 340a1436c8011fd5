"""Decisions and costs of a run, computed from the network alone, without data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from amc_compress.config.run_config import RunConfig
from amc_compress.config.values import ONNX_BYTES, own_cost_references
from amc_compress.learners.candidates.moments.wide import places_of
from amc_compress.learners.export.onnx_options import OnnxOptions
from amc_compress.learners.export.onnx_size import onnx_bytes_cost
from amc_compress.learners.layers.wide_layers import unrepaired_note, wide_layers_note
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Inputs
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_compress.runs.data_facts import DataFacts
from amc_compress.runs.networks import example_input
from amc_compress.runs.packed_header import header_bytes
from amc_env import (
    Budget,
    CompressionEnv,
    CompressionPlan,
    Evaluations,
    InfeasibleBudgetError,
    InputDataError,
    make_cost,
)
from amc_env.costs.costs import CostModel, costs_for
from amc_env.costs.entered_cost import entered
from amc_env.costs.latency import load_cost_models
from amc_env.costs.own_costs import own_costs
from amc_env.costs.storage import StorageFormat
from amc_env.graph import LayerGraph
from amc_env.kinds import Quantity
from amc_env.plan import Decision
from amc_env.scores.compressible import Compressible
from amc_env.validation.sentences import first_line

_ROOM = 1.25
"""How far the estimated bytes of sparse networks may be from the measured ones."""


@dataclass(frozen=True)
class Problem:
    """The decisions of a run and the costs of its plans.

    An environment takes it in place of the learner that will solve it, to check budget and reward
    before that is prepared.

    Args:
        graph: Facts about the original network.
        decisions: What is decided, in the order of the search; possibly nothing.
        costs: Cost name -> model.
        notes: Sentences for the user on what no decision is about.
    """

    graph: LayerGraph
    decisions: tuple[Decision, ...]
    costs: Mapping[str, CostModel]
    notes: tuple[str, ...] = ()
    original_score: ClassVar[float] = 0.5

    @property
    def cost_models(self) -> Mapping[str, CostModel]:
        """All costs, for an environment."""
        return self.costs

    def evaluate(self, plan: CompressionPlan) -> float:
        """Raises RuntimeError: plans are evaluated by the prepared learner."""
        raise RuntimeError("Expected the prepared learner to evaluate plans, got its problem.")

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
        known = costs_for(self.decisions)
        return {name: cost for name, cost in self.costs.items() if name not in known}

    def original(self) -> dict[str, float]:
        """Returns the absolute costs of the uncompressed network."""
        return {name: cost.original(self.decisions) for name, cost in self.costs.items()}


def make_problem(
    config: RunConfig,
    traced: TracedModel,
    *,
    tables: bool = True,
    example: Tensor | None = None,
    exported: Inputs | None = None,
    onnx: OnnxOptions | None = None,
) -> Problem:
    """Returns what the learner of these options will decide about a network.

    Args:
        config: The options.
        traced: The original network.
        tables: Whether to read the cost tables, and to build the costs of ``--cost``.
        example: A batch as the network takes it, to count the packed file's header in the bytes;
            without it they are a few hundred too few.
        exported: What the network is called with, to export it where its ONNX file is a cost.
        onnx: Options of that file.

    Raises:
        ExportError: If its ONNX file is a cost, and it cannot be exported.
        UntraceableModelError: If nothing of the network can be cut, and cutting is asked for.
    """
    space = config.spec.decide(traced)
    decisions, storage = space.decisions, space.storage
    if storage is not None and example is not None:
        storage = replace(storage, fixed_bytes=header_bytes(config.spec, traced.model, example))
    graph = traced.graph
    costs: dict[str, CostModel] = {
        name: make_cost(name, graph, decisions, storage) for name in costs_for(decisions)
    }
    if exported is not None and ONNX_BYTES in config.named_costs:
        costs[ONNX_BYTES] = onnx_bytes_cost(traced.model, graph, decisions, exported, onnx)
    if tables:
        costs |= read_tables(config, graph, decisions, storage)
        costs |= _own_costs(config, costs, graph, decisions, storage)
    return Problem(graph, decisions, costs, space.notes)


def check_against(
    config: RunConfig,
    network: nn.Module,
    facts: DataFacts,
    *,
    search: bool,
    task: Task,
    example: Inputs | None = None,
) -> tuple[str, ...]:
    """Checks the options of a run against its network, before any work is done.

    Args:
        config: The options.
        network: The original one, trained or not.
        facts: About the data.
        search: Whether a search follows, so that there must be a plan within the budget.
        task: What the network is for.
        example: One sample of the data; None for an image of their size.

    Returns:
        What the user should know of the costs of plans, if a search follows.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        InputDataError: If the network does not fit the data.
        UntraceableModelError: If nothing of the network can be compressed.
        ValueError: If the reward asks for a cost that is not there.
    """
    seen: Inputs = example_input(facts) if example is None else example
    _check_forward(config, network, facts, task, seen)
    if not search:
        return ()
    traced = trace(network, seen, ignore=config.ignore, part=config.part, branches=config.depth)
    # A header that is not counted here, the prepared learner counts.
    is_counted = "bytes" in config.budget.names and _has_classes(task)
    counted = seen if is_counted and example is None and isinstance(seen, Tensor) else None
    problem = make_problem(config, traced, example=counted, exported=seen)
    check_feasible(config, problem)
    cuts = config.spec.prunes or config.spec.sparsifies
    split = places_of(traced) if config.spec.prunes else ()
    wide = wide_layers_note(traced.graph, split) if cuts else ()
    whole = unrepaired_note(traced.graph, traced.model) if config.spec.prunes else ()
    return (*traced.graph.remarks(), *wide, *whole, *problem.notes)


def _has_classes(task: Task) -> bool:
    return task.name == CLASSIFICATION.name


def _check_forward(
    config: RunConfig, network: nn.Module, facts: DataFacts, task: Task, example: Inputs
) -> None:
    try:
        with torch.no_grad():
            outputs = task.outputs(task.ask(network, example))
    except Exception as error:  # a network of the user's may raise anything
        raise InputDataError(
            f"The model {config.model!r} cannot read {_samples(facts)} "
            f"({first_line(error)}); choose a model made for {_made_for(facts)}."
        ) from error
    if facts.n_classes is None or not _has_classes(task):
        return  # learners check what comes out against the targets
    if not isinstance(outputs, Tensor) or outputs.shape != (1, facts.n_classes):
        got = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise InputDataError(
            f"Expected {facts.n_classes} outputs per image from {config.model!r}, got {got}; the "
            f"data have {facts.n_classes} classes."
        )


def _samples(facts: DataFacts) -> str:
    if facts.image_shape is None:
        return f"the samples of {facts.data_name}"
    return f"images of shape {facts.image_shape}"


def _made_for(facts: DataFacts) -> str:
    return "such samples" if facts.image_shape is None else "images of that size"


def check_feasible(config: RunConfig, problem: Problem) -> None:
    """Checks that a plan meets the budget, and that the reward's costs are there.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        ValueError: If the reward asks for a cost that is not there.
    """
    make_env(config, problem, _known_bounds(config.budget, problem))


def make_env(
    config: RunConfig,
    learner: Compressible,
    budget: Budget | None = None,
    costs: Mapping[str, CostModel] | None = None,
    evaluations: Evaluations | None = None,
) -> CompressionEnv:
    """Returns the environment of a run's search.

    Args:
        config: The options.
        learner: The prepared learner, or the problem that it will solve.
        budget: The bounds, if they are not those of the options.
        costs: Those that the learner does not bring along.
        evaluations: Where plans are evaluated; in this process if None.

    Raises:
        InfeasibleBudgetError: If no plan meets the budget.
        ValueError: If the reward asks for a cost that is not there.
    """
    try:
        return CompressionEnv(
            learner,
            budget or config.budget,
            action=config.action,
            reward=config.reward,
            cost_models=costs,
            evaluations=evaluations,
        )
    except InfeasibleBudgetError as error:
        if learner.decisions:
            raise
        raise InfeasibleBudgetError(
            f"{error} All bits are fixed: leave the budget out, or let bits be decided, e.g. "
            f"--weight-bits 2-8."
        ) from error


def _known_bounds(budget: Budget, problem: Problem) -> Budget:
    """The budget, with room for what only the prepared learner knows.

    The bytes of sparse layers are estimates until entropy coding has been measured; what the
    learner can meet must not be rejected here, and what it cannot, it rejects itself.
    """
    if not any(d.kind.quantity is Quantity.DENSITY for d in problem.decisions):
        return budget
    units = {name: cost.unit for name, cost in problem.costs.items()}
    bounds = dict(budget.resolved(problem.original(), units).bounds)
    if "bytes" in bounds:
        lower, upper = bounds["bytes"]
        bounds["bytes"] = (lower / _ROOM, min(1.0, upper * _ROOM))
    return Budget(**bounds)


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
