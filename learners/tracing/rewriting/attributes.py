"""Widths that modules hold in attributes, for forwards that cannot be rewritten.

``split(self.split_size)`` in GPT-2 is right once the attribute is; nothing else in the code has to
change, and whatever it is called with later (a cache of keys and values) is served alike. Numbers
may also stand in settings that a module holds (``self.config.num_attention_heads``): a cut module
gets its own copy of these. Which numbers hold a width that a cut changes cannot be read off their
values: half of the heads halve ``split_size``, but not ``head_dim``. Those that the forward reads
are tried, the fewest first, and the proof of the group tells.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.rewriting.rewrites import Obstacle

_MAX_TOGETHER = 3  # attributes that one group changes
_MAX_TRIALS = 24


@dataclass
class Attributes:
    """Numbers of a module that shrink with a channel group; stands among the rewrites.

    Args:
        name: Qualified module name.
        values: Attribute, or ``"settings.attribute"`` -> its value in the original.
        start: First unit of the group.
        size: Units of the group.
    """

    name: str
    values: dict[str, int]
    start: int
    size: int

    def is_needed(self, alive: Tensor) -> bool:
        """Whether a cut reaches the group."""
        return not bool(alive[self.start : self.start + self.size].all())

    def apply(self, module: nn.Module, alive: Tensor, device: torch.device) -> None:
        """Sets the numbers of a copied module."""
        kept = int(alive[self.start : self.start + self.size].sum())
        owners: dict[str, Any] = {"": module}
        for place, value in self.values.items():
            holder, _, attribute = place.rpartition(".")
            if holder not in owners:  # others read the same settings
                owners[holder] = copy.copy(getattr(module, holder))
                setattr(module, holder, owners[holder])
            setattr(owners[holder], attribute, value // self.size * kept)


def find_attributes(
    model: nn.Module,
    obstacles: Sequence[Obstacle],
    units: range,
    is_right: Callable[[Sequence[Attributes]], bool],
    run: Callable[[], Any],
    before: Iterable[Attributes] = (),
) -> list[Attributes] | None:
    """Returns what makes the cut of a group right, None if no numbers of one class of modules do.

    Args:
        model: The network.
        obstacles: Modules that would have to be rewritten.
        units: The units of the group.
        is_right: Tries it.
        run: Runs the network.
        before: What has made others right: of layers that are alike the same numbers do.
    """
    first = dict.fromkeys(tuple(entry.values) for entry in before)
    found = [obstacle for obstacle in obstacles if bool(obstacle.touched[list(units)].any())]
    found.sort(key=lambda obstacle: int(obstacle.touched.sum()))  # the nearest first
    if not found:
        return None
    read = numbers_read(model, [obstacle.name for obstacle in found], run)
    classes: dict[type, list[str]] = {}  # layers that share a group hold its width alike
    for obstacle in found:
        classes.setdefault(type(model.get_submodule(obstacle.name)), []).append(obstacle.name)
    trials = (
        [Attributes(name, _inside(read[name], chosen), units.start, len(units)) for name in names]
        for names in classes.values()
        for chosen in _candidates([read[name] for name in names], len(units), first)
    )
    tried = ([x for x in trial if x.values] for trial, _ in zip(trials, range(_MAX_TRIALS),
                                                                 strict=False))  # fmt: skip
    return next((trial for trial in tried if is_right(trial)), None)


def _inside(numbers: Mapping[str, int], chosen: Collection[str]) -> dict[str, int]:
    return {name: value for name, value in numbers.items() if name in chosen}


def _candidates(
    read: Sequence[Mapping[str, int]], size: int, first: Collection[tuple[str, ...]]
) -> Iterator[tuple[str, ...]]:
    numbers = dict.fromkeys(
        name
        for numbers in read
        for name, value in numbers.items()
        if value >= size and value % size == 0
    )
    yield from (names for names in first if numbers.keys() >= {*names})
    for count in range(1, _MAX_TOGETHER + 1):
        yield from (names for names in combinations(numbers, count) if names not in first)


# ---------------------------------------------------------------------- what a forward reads


def numbers_read(
    model: nn.Module, names: Sequence[str], run: Callable[[], Any]
) -> dict[str, dict[str, int]]:
    """Returns the whole numbers that code reads off some modules and off their settings.

    Args:
        model: The network.
        names: Of its modules.
        run: Runs it.

    Returns:
        Module -> attribute, or ``"settings.attribute"`` -> value, in the order of the attributes.
    """
    seen: dict[str, dict[str, int]] = {name: {} for name in names}
    with ExitStack() as stack:
        for name in names:
            module = model.get_submodule(name)
            for holder, settings in _settings(module).items():
                watched = copy.copy(settings)
                if _watch(watched, f"{holder}.", seen[name]):
                    stack.enter_context(_replaced(module, holder, watched))
            stack.enter_context(_watched(module, seen[name]))
        run()
    order = {name: list(vars(model.get_submodule(name))) for name in names}
    return {
        name: dict(sorted(found.items(), key=lambda item: _position(order[name], item[0])))
        for name, found in seen.items()
    }


def _position(order: Sequence[str], name: str) -> tuple[bool, int]:
    """A module's own numbers come first, as it has them; its settings' in the order of reading."""
    return ("." in name, order.index(name) if name in order else 0)


def _settings(module: nn.Module) -> dict[str, Any]:
    """Returns objects in a module's attributes that hold whole numbers: what it was made from."""
    return {
        name: value
        for name, value in vars(module).items()
        if not name.startswith("_")
        and not isinstance(value, (nn.Module, Tensor, type))
        and any(type(x) is int for x in getattr(value, "__dict__", {}).values())
    }


def _watch(owner: Any, prefix: str, seen: dict[str, int]) -> bool:
    """Notes the whole numbers that are read off an object; False if it does not let that happen."""
    cls: Any = type(owner)

    def read(self: Any, name: str) -> Any:
        value = cls.__getattribute__(self, name)
        if type(value) is int and not name.startswith("_"):
            seen.setdefault(f"{prefix}{name}", value)
        return value

    try:
        watching = type(cls.__name__, (cls,), {"__getattribute__": read})
        owner.__class__ = watching
    except Exception:  # a class that cannot be derived from
        return False
    return True


@contextmanager
def _watched(module: nn.Module, seen: dict[str, int]) -> Iterator[None]:
    cls = module.__class__
    _watch(module, "", seen)
    try:
        yield
    finally:
        module.__class__ = cls


@contextmanager
def _replaced(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    attributes = vars(module)
    before = attributes[name]
    attributes[name] = value
    try:
        yield
    finally:
        attributes[name] = before
