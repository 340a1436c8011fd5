"""User-defined costs, named as ``package.module:name``."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from amc_env.costs.cost_model import CostFunction, CostModel
from amc_env.costs.costs import costs_for, make_cost
from amc_env.costs.entered_cost import entered
from amc_env.costs.storage import StorageFormat
from amc_env.errors import InputDataError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.validation.references import resolve


def all_costs(learner: Any, own: Mapping[str, CostFunction | str]) -> dict[str, CostModel]:
    """Returns the costs of :func:`~amc_env.costs.costs.costs_for`, the learner's, and the user's.

    Args:
        learner: Has ``graph``, ``decisions``, perhaps ``cost_models`` and ``storage``.
        own: The user's, as :func:`own_costs` takes them; of one name the last one holds.
    """
    graph, decisions = learner.graph, tuple(learner.decisions)
    built = own_costs(own, graph, decisions, getattr(learner, "storage", None))
    return {
        **{name: make_cost(name, graph, decisions) for name in costs_for(decisions)},
        **entered(getattr(learner, "cost_models", {}), decisions),
        **entered(built, decisions),
    }


def own_costs(
    costs: Mapping[str, CostFunction | str],
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None = None,
) -> dict[str, CostFunction]:
    """Builds the costs that are given by name; others stay as they are.

    Args:
        costs: Cost name -> model, or ``"package.module:Class"``; the class (or function) is called
            with the graph and the decisions, and with ``storage`` if it takes one.
        graph: The network.
        decisions: All decisions in order.
        storage: Bits and densities of layers that no decision is about.

    Raises:
        InputDataError: If there is no such code, or what it makes is no cost.
    """
    return {
        name: _built(name, cost, graph, decisions, storage) if isinstance(cost, str) else cost
        for name, cost in costs.items()
    }


def _built(
    name: str,
    reference: str,
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None,
) -> CostFunction:
    factory = resolve(reference, "cost")
    what = f"the cost {name} ({reference})"
    if not callable(factory):
        raise InputDataError(
            f"Expected {what} to be a subclass of amc_env.CostModel, or a function that returns "
            f"one, got {type(factory).__name__}."
        )
    more = {"storage": storage} if _takes_storage(factory) else {}
    try:
        inspect.signature(factory).bind(graph, decisions, **more)
    except TypeError as error:
        raise InputDataError(
            f"Expected {what} to take the graph and the decisions: {error}."
        ) from error
    except ValueError:  # some builtins have no signature
        pass
    cost = factory(graph, decisions, **more)
    if not callable(cost):
        raise InputDataError(
            f"Expected {what} to make an amc_env.CostModel, got {type(cost).__name__}."
        )
    model: CostFunction = cost  # what it answers is checked where it enters the environment
    return model


def _takes_storage(factory: Any) -> bool:
    try:
        return "storage" in inspect.signature(factory).parameters
    except ValueError:
        return False
