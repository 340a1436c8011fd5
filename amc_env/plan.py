"""Decisions and plans: what is chosen, and the record that all packages share."""

from __future__ import annotations

import bisect
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from amc_env.errors import ArgumentError, PlanMismatchError
from amc_env.graph import LayerGraph
from amc_env.kinds import DecisionKind as DecisionKind
from amc_env.kinds import kind_named, registered
from amc_env.validation.checks import checked, shown
from amc_env.validation.json_text import parse_json

PLAN_VERSION = 1
_CHOICE_TOLERANCE = 1e-6

CURVES = ("layer_errors", "gradient_scores")
"""Optional methods of learners that say, without an evaluation, what every choice damages: decision
key -> one number per choice, larger is worse."""


@checked
@dataclass(frozen=True)
class Decision:
    """One scalar to choose, with the grid of values it may take.

    Args:
        target: The channel group or layer decided about.
        kind: What the value means.
        choices: Legal values in ascending order; the last one leaves the network as it is.
        size: Number of units the decision is about (channels of a group, weights of a layer).
    """

    target: str
    kind: DecisionKind
    choices: tuple[float, ...]
    size: int

    def __post_init__(self) -> None:
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            raise ValueError(f"Expected ascending, distinct choices, got {self.choices}.")
        registered(self.kind).check(self.choices, self.key)

    @cached_property
    def key(self) -> str:
        """``"target:kind"``, unique within a plan."""
        return f"{self.target}:{self.kind.name}"

    def units(self, value: float) -> int:
        """Returns how many units a keep ratio or density of ``value`` leaves."""
        return round(value * self.size)

    def nearest(self, value: float) -> float:
        """Returns the choice nearest to ``value``; of two equally near ones the larger."""
        right = bisect.bisect_left(self.choices, value)
        if right < len(self.choices) and self.choices[right] == value:  # as in plans on the grid
            return self.choices[right]
        around = self.choices[max(0, right - 1) : right + 1]
        return around[0] if value - around[0] < around[-1] - value else around[-1]

    def is_legal(self, value: float) -> bool:
        """Whether ``value`` lies on the grid, up to rounding of the file format."""
        return abs(self.nearest(value) - value) <= _CHOICE_TOLERANCE


@checked
def keep_ratio_decision(
    group: str,
    size: int,
    round_to: int = 8,
    min_ratio: float = 0.0,
    channels_per_unit: int = 1,
    least: int = 1,
) -> Decision:
    """Builds the keep-ratio decision of a channel group.

    Args:
        group: Name of the group.
        size: Its number of units.
        round_to: Kept channels come in multiples of this (hardware likes 8 or 16), capped by
            ``size`` units; keeping everything is always legal.
        min_ratio: Smallest keep ratio on offer.
        channels_per_unit: Channels that are cut with one unit, see
            :meth:`amc_env.graph.LayerGraph.channels_per_unit`.
        least: Number of units that must stay.

    Raises:
        ValueError: If an argument is out of range.
    """
    if min(size, round_to, channels_per_unit) < 1:
        raise ValueError(
            f"Expected size, round_to and channels_per_unit >= 1, got {size}, {round_to} and "
            f"{channels_per_unit}."
        )
    if not 0.0 <= min_ratio <= 1.0:
        raise ValueError(f"Expected 0 <= min_ratio <= 1, got {min_ratio}.")
    step = min(round_to // math.gcd(round_to, channels_per_unit), size)
    kept = [k for k in range(step, size + 1, step) if k >= max(min_ratio * size, least)]
    if not kept or kept[-1] != size:
        kept.append(size)
    return Decision(group, DecisionKind.KEEP_RATIO, tuple(k / size for k in kept), size)


@checked
def depth_decision(graph: LayerGraph, branch: str) -> Decision:
    """Builds the decision whether a branch is there: 1, or 0 to leave it out.

    Args:
        graph: The network.
        branch: Name of one of its branches.

    Raises:
        KeyError: If there is no such branch.
    """
    names, full = set(graph.branch(branch).layers), graph.full()
    weights = sum(x.weights(full) for x in graph.layers if x.name in names)
    return Decision(branch, DecisionKind.DEPTH, (0.0, 1.0), max(1, round(weights)))


@checked
def with_depth(graph: LayerGraph, decisions: Sequence[Decision]) -> tuple[Decision, ...]:
    """Returns decisions with those about all branches of a network among them.

    A branch is decided before what is within it, so that what is decided about a branch that is
    left out, which then changes nothing, is observed to be of no account. It is decided all the
    same: every episode has the same decisions, and every plan the same keys.

    Args:
        graph: The network.
        decisions: Other decisions, in network order.
    """
    place = {layer.name: i for i, layer in enumerate(graph.layers)}
    end = len(graph.layers)

    def first(decision: Decision) -> int:
        touched = decision.kind.touched(graph, decision.target)
        return min((place[layer.name] for layer in touched[:1]), default=end)

    found, left = [], list(decisions)
    for branch in graph.branches:
        start = min((place[name] for name in branch.layers), default=end)
        while left and first(left[0]) < start:
            found.append(left.pop(0))
        found.append(depth_decision(graph, branch.name))
    return (*found, *left)


class CompressionPlan(Mapping[str, float]):
    """Decision key -> chosen value, complete or partial; immutable and hashable.

    Args:
        values: ``"target:kind" -> value``.
    """

    def __init__(self, values: Mapping[str, float]) -> None:
        try:
            "".join(values)  # every key is a word
            self._values = {key: float(value) for key, value in values.items()}
        except (TypeError, ValueError, AttributeError, OverflowError):
            raise ArgumentError(
                f"Expected a mapping from keys of decisions to numbers, got {shown(values)}."
            ) from None

    @classmethod
    def from_values(cls, decisions: Sequence[Decision], values: Sequence[float]) -> CompressionPlan:
        """Builds a plan from values in decision order; fewer values give a partial plan."""
        return cls({d.key: float(v) for d, v in zip(decisions, values, strict=False)})

    @classmethod
    def full(cls, decisions: Sequence[Decision]) -> CompressionPlan:
        """Returns the plan that changes nothing."""
        return cls({d.key: d.choices[-1] for d in decisions})

    @classmethod
    def from_choices(cls, decisions: Sequence[Decision], indices: Sequence[int]) -> CompressionPlan:
        """Builds a complete plan from the index of each decision's choice.

        Raises:
            PlanMismatchError: If there are more or fewer indices than decisions, or a grid has no
                choice of that index.
        """
        if len(indices) != len(decisions):
            raise PlanMismatchError(
                f"Expected {len(decisions)} indices of choices, got {len(indices)}."
            )
        for d, index in zip(decisions, indices, strict=True):
            if not 0 <= index < len(d.choices):
                raise PlanMismatchError(
                    f"{d.key} has choices 0 to {len(d.choices) - 1}, got the index {index}."
                )
        return cls({d.key: d.choices[i] for d, i in zip(decisions, indices, strict=True)})

    def __getitem__(self, key: str) -> float:
        return self._values[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, CompressionPlan):
            return self._values == other._values
        return super().__eq__(other)

    def __hash__(self) -> int:
        return hash(frozenset(self._values.items()))

    def __repr__(self) -> str:
        return f"CompressionPlan({self._values})"

    def values_for(self, decisions: Sequence[Decision]) -> list[float]:
        """Returns the values in decision order, snapped onto the grid.

        Raises:
            PlanMismatchError: If keys are missing or unknown, or a value is off the grid.
        """
        try:
            expected = {d.key for d in decisions}
        except (TypeError, AttributeError):
            raise ArgumentError(f"Expected decisions, got {shown(decisions)}.") from None
        if missing := sorted(expected - self._values.keys()):
            raise PlanMismatchError(f"The plan lacks decisions of this network: {missing}.")
        if unknown := sorted(self._values.keys() - expected):
            raise PlanMismatchError(f"The plan decides about things not here: {unknown}.")
        snapped = []
        for d in decisions:
            value = self._values[d.key]
            nearest = d.nearest(value) if math.isfinite(value) else d.choices[-1]
            if not abs(nearest - value) <= _CHOICE_TOLERANCE:
                raise PlanMismatchError(
                    f"{d.key} = {value} is not on the grid; the nearest legal value is {nearest}."
                )
            snapped.append(nearest)
        return snapped

    def values_of(self, kind: DecisionKind) -> dict[str, float]:
        """Returns target -> value of the decisions of one kind."""
        suffix = f":{kind.name}"
        return {k.removesuffix(suffix): v for k, v in self._values.items() if k.endswith(suffix)}

    def choices_for(self, decisions: Sequence[Decision]) -> tuple[int, ...]:
        """Returns the index of each decision's choice, in decision order.

        Raises:
            PlanMismatchError: As :meth:`values_for`.
        """
        values = self.values_for(decisions)
        return tuple(d.choices.index(v) for d, v in zip(decisions, values, strict=True))

    def to_json(self) -> str:
        """Returns the plan as a versioned JSON document, decisions in insertion order."""
        rows = []
        for key, value in self._values.items():
            target, kind = key.rsplit(":", 1)
            rows.append({"target": target, "kind": kind, "value": value})
        return json.dumps(
            {"format": "compression-plan", "version": PLAN_VERSION, "decisions": rows}, indent=2
        )

    @classmethod
    def from_json(cls, text: str | bytes) -> CompressionPlan:
        """Reads what :meth:`to_json` wrote.

        Raises:
            PlanMismatchError: If the text is no plan, is cut short, or has another version.
        """
        if not isinstance(text, str | bytes):
            raise ArgumentError(f"Expected a plan as text, got {shown(text)}.")
        try:
            document = parse_json(text)
            version = document["version"]
            if document["format"] != "compression-plan":
                raise KeyError("format")
        except (ValueError, KeyError, TypeError) as error:
            raise PlanMismatchError(
                f"Expected a compression plan in JSON, got something else or a file cut short "
                f"({type(error).__name__}: {error})."
            ) from error
        if version != PLAN_VERSION:
            raise PlanMismatchError(
                f"Expected a plan of version {PLAN_VERSION}, got version {shown(version)}; "
                f"write it again with this release."
            )
        try:
            values = {
                f"{row['target']}:{kind_named(row['kind']).name}": float(row["value"])
                for row in document["decisions"]
            }
            if len(values) < len(document["decisions"]):
                raise ValueError("it decides twice about the same thing")
            if not all(map(math.isfinite, values.values())):
                raise ValueError("it holds values that are no finite numbers")
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanMismatchError(f"A row of the plan is damaged: {error}.") from error
        return cls(values)
