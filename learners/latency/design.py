"""Experimental design: networks that cover all pairs of widths of every layer.

Widths are set per channel group. A layer's input and output belong to different groups (or to
one), so what is needed is a list of plans in which every two groups that meet in a layer take every
pair of levels: an orthogonal array of strength 2 (Rao 1947; here ``(row + k * column) mod p`` for a
prime p), with one column per colour of a graph whose edges are the layers. ``p * p`` networks do
for any depth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from amc_env import ChannelGroup, Decision, LayerGraph, Width, keep_ratio_decision
from amc_env.costs.cost_table import measured_layers

POINTS = (3, 5, 7)  # primes
Kept = dict[str, int]


def check_points(points: int) -> None:
    """Checks the number of widths per axis.

    Raises:
        ValueError: If it is not one of ``POINTS``.
    """
    if points not in POINTS:
        raise ValueError(f"Expected one of {POINTS} points per axis, got {points}.")


def levels_of(graph: LayerGraph, round_to: int, points: int) -> dict[str, tuple[int, ...]]:
    """Returns the kept units at which each group is measured: at most ``points``, always the ends.

    Raises:
        ValueError: If ``points`` is not one of ``POINTS``.
    """
    check_points(points)
    result = {}
    for group in graph.groups:
        decision = _decision(graph, group, round_to)
        choices = [decision.units(choice) for choice in decision.choices]
        index = np.linspace(0, len(choices) - 1, min(points, len(choices))).round().astype(int)
        result[group.name] = tuple(choices[i] for i in index)
    return result


def _decision(graph: LayerGraph, group: ChannelGroup, round_to: int) -> Decision:
    per_unit = graph.channels_per_unit(group)
    return keep_ratio_decision(group.name, group.size, round_to, 0.0, per_unit, group.least)


def plans(
    graph: LayerGraph, levels: Mapping[str, Sequence[int]], points: int, seed: int = 0
) -> list[Kept]:
    """Returns group -> kept units for each network to measure, the largest and smallest first."""
    largest = {name: max(counts) for name, counts in levels.items()}
    smallest = {name: min(counts) for name, counts in levels.items()}
    colours = _colours(graph)
    rng = np.random.default_rng(seed)
    rows, columns = (axis.reshape(-1) for axis in np.indices((points, points)))
    array = [(rows + k * columns) % points for k in range(points)] + [columns]
    chosen: dict[str, npt.NDArray[np.int64]] = {}
    for name, counts in levels.items():
        # A shuffle of the levels keeps every pair and breaks ties between groups of one colour.
        level = rng.permutation(points)[array[colours[name] % len(array)]]
        chosen[name] = np.array(counts)[level * len(counts) // points]
    found = [largest, smallest]
    found += [{name: int(units[i]) for name, units in chosen.items()} for i in range(points**2)]
    return [plan for i, plan in enumerate(found) if plan not in found[:i]]


def random_plans(graph: LayerGraph, round_to: int, count: int, seed: int) -> list[Kept]:
    """Returns plans with every group's channels drawn evenly from all multiples of ``round_to``."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        plan = {}
        for group in graph.groups:
            decision = _decision(graph, group, round_to)
            plan[group.name] = decision.units(float(rng.choice(decision.choices)))
        found.append(plan)
    return found


def axis_points(width: Width, levels: Mapping[str, Sequence[int]], points: int) -> tuple[int, ...]:
    """Returns the widths at which a table holds an axis: at most ``points``, always the ends.

    An axis that several groups share may have more widths than that; evenly spaced ones stand for
    them.
    """
    sums = {width.fixed}
    for name, multiplier in width.terms:
        sums = {total + multiplier * units for total in sums for units in levels[name]}
    found = sorted(sums)
    index = np.linspace(0, len(found) - 1, min(points, len(found))).round().astype(int)
    return tuple(found[i] for i in index)


def _colours(graph: LayerGraph) -> dict[str, int]:
    """Colours the groups so that those meeting in a layer differ, greedily in network order."""
    neighbours: dict[str, set[str]] = {group.name: set() for group in graph.groups}
    for layer in measured_layers(graph):
        inputs, outputs = ({n for n, _ in w.terms} for w in (layer.in_width, layer.out_width))
        for first, second in ((inputs, outputs), (outputs, inputs)):
            for name in first:
                neighbours[name] |= second - {name}
    colours: dict[str, int] = {}
    for group in graph.groups:
        taken = {colours[other] for other in neighbours[group.name] if other in colours}
        colours[group.name] = next(c for c in range(len(taken) + 1) if c not in taken)
    return colours
