"""Costs of the user's own, named as ``package.module:name``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from amc_env.cost_model import Array, CostModel, largest, original_cost
from amc_env.errors import InputDataError
from amc_env.graph import LayerGraph
from amc_env.plan import Decision
from amc_env.references import resolve
from amc_env.storage import StorageFormat

_ROUNDING = 1e-9


def own_costs(
    costs: Mapping[str, CostModel | str],
    graph: LayerGraph,
    decisions: Sequence[Decision],
    storage: StorageFormat | None = None,
) -> dict[str, CostModel]:
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
) -> CostModel:
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
    _check(cost, what, decisions)
    model: CostModel = cost
    return model


def _takes_storage(factory: Any) -> bool:
    try:
        return "storage" in inspect.signature(factory).parameters
    except ValueError:
        return False


def _check(cost: Any, what: str, decisions: Sequence[Decision]) -> None:
    """Checks what budgets rest on: numbers that never fall when a single value grows."""
    low = np.array([d.choices[0] for d in decisions], dtype=np.float64)
    high = largest(decisions)
    _number(cost, high, what)
    original = original_cost(cost, decisions)
    if not (math.isfinite(original) and original > 0.0):
        raise InputDataError(
            f"Expected {what} to be above 0 for the original network, got {original!r}."
        )
    least, most = _number(cost, low, what), _number(cost, high, what)
    room = _ROUNDING * max(abs(least), abs(most))
    for i, decision in enumerate(decisions):
        up, down = low.copy(), high.copy()
        up[i], down[i] = high[i], low[i]
        raised, lowered = _number(cost, up, what), _number(cost, down, what)
        if raised < least - room or lowered > most + room:
            raise InputDataError(
                f"Expected {what} never to fall when a value grows, for hard budgets rest on it; "
                f"it falls with {decision.key}."
            )


def _number(cost: Any, values: Array, what: str) -> float:
    found = cost(values)
    try:
        number = float(found)
    except (TypeError, ValueError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0.0):
        raise InputDataError(f"Expected {what} to be a finite number of at least 0, got {found!r}.")
    return number
