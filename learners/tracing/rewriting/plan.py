"""Decides how a module is rewritten, for all the ways in which it is called."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from amc_compress.learners.tracing.labels.labels import compact
from amc_compress.learners.tracing.rewriting.edits import Planner
from amc_compress.learners.tracing.rewriting.forward_tracing import Record, TracedForward
from amc_compress.learners.tracing.rewriting.rewrite import Units
from amc_compress.learners.tracing.rewriting.rewrites import CannotRewriteError, Obstacle, Rewrite
from amc_compress.learners.tracing.rewriting.source import Part, rewritten_class
from amc_compress.learners.tracing.rewriting.symbolic_forward import Variant, same

# Cuts of single groups that one module replays: enough to tell its mistakes, few for a DenseNet.
_MAX_ALONE = 8


def plan_rewrite(
    name: str,
    traced: TracedForward,
    unit_of_label: Tensor,
    joint: Sequence[Tensor],
    alone: Sequence[Tensor],
) -> Rewrite | Obstacle | None:
    """Returns the rewrite that a module needs, None if it needs none, or why there is none.

    Args:
        name: Qualified module name.
        traced: The module's graphs and its recorded executions.
        unit_of_label: Unit of every label.
        joint: Some cuts to replay, each a mask of the units that stay.
        alone: Cuts of one group each; the module replays some of those that touch it.
    """
    touched = torch.zeros(len(joint[0]), dtype=torch.bool)
    if traced.failure is not None:
        for labels in traced.seen:
            touched[unit_of_label[labels]] = True
        return Obstacle(name, touched, traced.failure)
    seen: dict[Variant, list[tuple[Record, Units]]] = {}
    for variant, record in traced.calls:
        units = Units({node: tree_map(lambda x: _units(x, unit_of_label), labels)
                       for node, labels in record.labels.items()})  # fmt: skip
        seen.setdefault(variant, []).append((record, units))
        for leaf in tree_leaves(units.compacted):
            if isinstance(leaf, Tensor):
                touched[leaf.reshape(-1)] = True
    touching = [alive for alive in alone if bool((touched & ~alive).any())]
    if not touching:
        return None
    cuts = [*joint, *touching[:: -(-len(touching) // _MAX_ALONE)]]
    try:
        parts = [part for variant, calls in seen.items() for part in _parts(variant, calls, cuts)]
    except CannotRewriteError as error:
        return Obstacle(name, touched, str(error))
    if not any(part.edits for part in parts):
        return None
    cls = rewritten_class(traced.module, parts)
    return Rewrite(name, cls, [edit for part in parts for edit in part.edits], touched)


def _units(leaf: Any, unit_of_label: Tensor) -> Any:
    # Compacted twice: labels that differ may belong to one unit.
    return compact(unit_of_label[compact(leaf)]) if isinstance(leaf, Tensor) else leaf


# ---------------------------------------------------------------------- calls of one variant


def _parts(
    variant: Variant, calls: Sequence[tuple[Record, Units]], cuts: Sequence[Tensor]
) -> list[Part]:
    """Returns what a variant becomes: one forward, or one per kind of call that differs.

    Calls differ if other channels are cut in them, or if a number that the new forward has written
    in was another. They must be told apart by the numbers that they were passed.
    """
    whole = Planner(variant, calls, cuts)
    if not whole.bad:
        return [Part(variant, dict(variant.guards), [])]
    parts: list[Part] = []
    kinds = whole.kinds()
    for kind in kinds:
        planner = whole if len(kinds) == 1 else Planner(variant, kind, cuts)
        edits = planner.edits()
        written = planner.written(edits)
        by_value: dict[str, list[tuple[Record, Units]]] = {}
        for record, units in kind:
            values = repr([record.numbers[node] for node in written])
            by_value.setdefault(values, []).append((record, units))
        for part_calls in by_value.values():
            if len(by_value) > 1:
                edits = Planner(variant, part_calls, cuts).edits()
            numbers = part_calls[0][0].numbers
            guards = dict(variant.guards) | {node: numbers[node] for node in written}
            parts.append(Part(variant, guards, edits, [record for record, _ in part_calls]))
    _separate(parts)
    return parts


def _separate(parts: Sequence[Part]) -> None:
    """Adds the arguments by which parts of one variant differ to what they hold for.

    Raises:
        CannotRewriteError: If they are called alike.
    """
    for part in parts:
        others = [other for other in parts if other is not part]
        if all(_are_separate(part, other) for other in others):
            continue
        for node in part.variant.known:
            values = [record.numbers[node] for record in part.records]
            if node.op == "placeholder" and all(same(value, values[0]) for value in values):
                part.guards[node] = values[0]
        if not all(_are_separate(part, other) for other in others):
            raise CannotRewriteError("it is called several times, with other channels each time")


def _are_separate(first: Part, second: Part) -> bool:
    """Whether no call that the first takes is one of the second's."""
    return all(
        any(not same(record.numbers[node], value) for node, value in first.guards.items())
        for record in second.records
    )
