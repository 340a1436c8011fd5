"""What a kind of decision is, and the registry of kinds.

A kind answers what the rest of the package asks about its decisions: which values they may have and
on what scale, what costs make of them, what later decisions observe, and how they are shown. A
kind of your own is an instance of :class:`DecisionKind`, or of a subclass, that
:func:`register_kind` has seen. Files hold its name alone and never load code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any, ClassVar

from amc_env.errors import ArgumentError, InputDataError
from amc_env.graph import Branch, LayerGraph, LayerSpec
from amc_env.support.deprecation import renamed_attribute
from amc_env.validation.checks import checked, shown, unknown
from amc_env.validation.references import FORM, is_reference, resolve

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_HOW = f"register it by amc_env.register_kind, or by amc_env.resolve_kind({FORM!r}), first"


class Quantity(StrEnum):
    """What the built-in costs take a value as: the one thing that they ask a kind."""

    WIDTH = "width"
    """The share of a channel group's units that stays."""
    DENSITY = "density"
    """The share of a layer's weights that is not zero."""
    WEIGHT_BITS = "weight_bits"
    """Bits of each weight of a layer."""
    ACTIVATION_BITS = "activation_bits"
    """Bits of each number that a layer reads."""
    PRESENCE = "presence"
    """Whether a branch is there: 1, or 0 for all in it."""
    NONE = "none"
    """Nothing that they count: it takes a cost of your own."""


OFF_BITS = 16
"""The choice of bits that means "not quantized"; costs count 32 bits for it."""

_RANGES: dict[Quantity, tuple[float, float]] = {
    Quantity.WIDTH: (0.0, 1.0),
    Quantity.DENSITY: (0.0, 1.0),
    Quantity.WEIGHT_BITS: (1.0, OFF_BITS),
    Quantity.ACTIVATION_BITS: (1.0, OFF_BITS),
    Quantity.PRESENCE: (0.0, 1.0),
}


@dataclass(frozen=True)
class Bar:
    """What one bar per layer shows.

    Args:
        kind: Name of the kind whose values it shows.
        label: In the legend.
        colour: As Matplotlib takes it.
    """

    kind: str
    label: str
    colour: str


@dataclass(frozen=True)
class Panel:
    """A panel of the picture of a plan, with bars next to each other for each layer.

    Args:
        label: Of the vertical axis.
        bars: From left to right.
        top: The axis ends there, or at the largest choice if that is larger.
    """

    label: str
    bars: tuple[Bar, ...]
    top: float = 1.0


@checked
@dataclass(frozen=True, eq=False, repr=False)
class DecisionKind:
    """What one scalar of a plan means.

    Args:
        name: In keys of plans (``"layer:name"``), files and tables: lower-case letters, digits and
            underscores.
        meaning: What a decision is, with its article, as in ``"a keep ratio"``.
        quantity: What the built-in costs take the value as.
        low: The smallest value that a choice may have; None for whatever the quantity allows.
        high: The largest value; None likewise.
        is_share: Whether the scale of the values is 0 to 1, whatever the choices; otherwise it goes
            from the first choice to the last.
        observed: What the observation's entry about earlier decisions of this kind on the same
            layer means; empty for no such entry.
        interleaves: Whether its decisions take turns with others about the same layer, so that
            each observes what was decided for the layer before.
        costs: Names of costs that tables of plans show because of it.
        panel: Where pictures of plans show it; None if they do not.
        caption: What a report says under the picture of its values; empty for no such picture.

    Raises:
        ValueError: If the name has another form, or the quantity has no such values.
    """

    KEEP_RATIO: ClassVar[DecisionKind]
    DENSITY: ClassVar[DecisionKind]
    WEIGHT_BITS: ClassVar[DecisionKind]
    ACTIVATION_BITS: ClassVar[DecisionKind]
    DEPTH: ClassVar[DecisionKind]

    name: str
    meaning: str
    quantity: Quantity = Quantity.NONE
    low: float | None = None
    high: float | None = None
    is_share: bool = False
    observed: str = ""
    interleaves: bool = True
    costs: tuple[str, ...] = ()
    panel: Panel | None = None
    caption: str = ""

    value = renamed_attribute("value", "name", removed_in="0.2")

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(
                f"Expected the name of a kind in lower-case letters, digits and underscores, got "
                f"{self.name!r}."
            )
        least, most = self.range
        lower, upper = _RANGES.get(self.quantity, (least, most))
        if not lower <= least <= most <= upper:
            raise ValueError(
                f"Expected {lower:g} <= low <= high <= {upper:g} for the values of {self.name}, "
                f"got {least:g} and {most:g}."
            )

    @property
    def range(self) -> tuple[float, float]:
        """The smallest and the largest value that a choice may have; infinite for any."""
        lower, upper = _RANGES.get(self.quantity, (-math.inf, math.inf))
        return (
            lower if self.low is None else self.low,
            upper if self.high is None else self.high,
        )

    def check(self, choices: Sequence[float], key: str) -> None:
        """Rejects choices that mean nothing.

        Args:
            choices: Ascending.
            key: Of the decision, for the message.

        Raises:
            ValueError: If one is out of range.
        """
        low, high = self.range
        if choices[0] < low or choices[-1] > high:
            raise ValueError(f"Expected choices from {low:g} to {high:g} for {key}, got {choices}.")

    def span(self, choices: Sequence[float]) -> tuple[float, float]:
        """Returns the ends of the scale that an action in [0, 1] refers to."""
        return (0.0, 1.0) if self.is_share else (choices[0], choices[-1])

    def unchanged(self, choices: Sequence[float]) -> float:
        """Returns the value of the uncompressed network, which ratios of costs refer to."""
        return choices[-1]

    def layers(self, graph: LayerGraph, target: str) -> tuple[str, ...]:
        """Returns the names of the layers that a value belongs to, for pictures and observations.

        Args:
            graph: The network.
            target: What is decided about.
        """
        return (target,)

    def touched(self, graph: LayerGraph, target: str) -> list[LayerSpec]:
        """Returns the layers whose cost a decision moves, producers first.

        Args:
            graph: The network.
            target: What is decided about: a channel group, if there is one of that name.
        """
        for group in graph.groups:
            if group.name == target:
                names = dict.fromkeys([*group.producers, *group.consumers])
                by_name = {layer.name: layer for layer in graph.layers}
                return [by_name[name] for name in names if name in by_name]
        return self.own_layers(graph, target)

    def own_layers(self, graph: LayerGraph, target: str) -> list[LayerSpec]:
        """Returns the layers of :meth:`layers` that the network has, in network order."""
        names = set(self.layers(graph, target))
        return [layer for layer in graph.layers if layer.name in names]

    def is_within(self, graph: LayerGraph, target: str, branch: Branch) -> bool:
        """Whether a branch holds all that a decision is about: without it the value says nothing.

        Args:
            graph: The network.
            target: What is decided about.
            branch: One of the network's.
        """
        if self.quantity is Quantity.WIDTH:
            return target in branch.groups
        own = self.own_layers(graph, target)
        return bool(own) and {layer.name for layer in own}.issubset(branch.layers)

    def text(self, value: float) -> str:
        """Returns a value as tables show it, at most seven characters."""
        return f"{value:g}"

    def kept(self, value: float, size: int) -> str:
        """Returns what stays of how much, as tables show it; empty if that says nothing."""
        return ""

    def __repr__(self) -> str:
        return f"<DecisionKind {self.name!r}>"

    def __str__(self) -> str:
        return self.name

    def __eq__(self, other: object) -> bool:
        """Whether it is the same kind, or its name."""
        return self is other or (isinstance(other, str) and other == self.name)

    def __hash__(self) -> int:
        return hash(self.name)

    def __reduce__(self) -> tuple[Any, ...]:
        """Returns how another process finds it, or registers it."""
        given = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        return _restored, (type(self), given)


KINDS: dict[str, DecisionKind] = {}
"""Name -> kind. :func:`register_kind` adds to it."""


def register_kind(kind: DecisionKind) -> DecisionKind:
    """Enters a kind, so that decisions may be of it, and plans in files are read.

    Args:
        kind: The kind. One that is made again, as when a module is loaded twice, is the first one.

    Returns:
        The kind that is registered by that name.

    Raises:
        ArgumentError: If it is no kind.
        ValueError: If another kind has its name.
    """
    if not isinstance(kind, DecisionKind):
        raise ArgumentError(f"Expected an amc_env.DecisionKind, got {shown(kind)}.")
    known = KINDS.setdefault(kind.name, kind)
    if known is not kind and _identity(known) != _identity(kind):
        raise ValueError(
            f"Expected a kind of a new name, got another {kind.name!r}; registered are "
            f"{', '.join(KINDS)}."
        )
    return known


def registered(kind: DecisionKind) -> DecisionKind:
    """Returns a kind if it is a registered one.

    Raises:
        ValueError: If it is not.
    """
    if KINDS.get(kind.name) is not kind:
        raise ValueError(f"Expected a registered kind of decision, got {kind.name!r}; {_HOW}.")
    return kind


def kind_named(name: Any) -> DecisionKind:
    """Returns the kind that a file names.

    Raises:
        ValueError: If none of that name is registered.
    """
    if not isinstance(name, str) or name not in KINDS:
        raise ValueError(f"{unknown('kind of decision', name, KINDS)[:-1]}; {_HOW}.")
    return KINDS[name]


def resolve_kind(kind: str | DecisionKind) -> DecisionKind:
    """Returns the kind behind a name or a reference; one that is new is registered.

    Args:
        kind: A name of :data:`KINDS`; ``"package.module:name"`` for one of the user; or a kind.

    Raises:
        ValueError: If the name is unknown, or no kind is there.
    """
    if isinstance(kind, str) and not is_reference(kind):
        return kind_named(kind)
    found = resolve(kind, "kind of decision") if isinstance(kind, str) else kind
    if not isinstance(found, DecisionKind):
        raise InputDataError(
            f"Expected the kind of decision {kind!r} to be an amc_env.DecisionKind, got "
            f"{shown(found)}."
        )
    return register_kind(found)


def _identity(kind: DecisionKind) -> tuple[Any, ...]:
    cls = type(kind)
    values = (getattr(kind, f.name) for f in fields(kind))
    return (cls.__module__, cls.__qualname__, *values)


def _restored(cls: type[DecisionKind], given: dict[str, Any]) -> DecisionKind:
    known = KINDS.get(given["name"])
    return register_kind(cls(**given)) if known is None else known
