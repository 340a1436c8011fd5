"""Configurations under which a class of ``transformers`` has given widths.

Nothing is known about a class but what it does. Integers of its configuration are changed, one or
two at a time, the network is made without memory (on the ``meta`` device), and a change stays if
more axes have the length that is wanted. Where that is not enough, single layers get values of
their own (``per_layer_config``, which some classes read).
"""

from __future__ import annotations

import copy
import inspect
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

Shapes = Mapping[str, tuple[int, ...]]
_LAYER = re.compile(r"\.(\d+)\.")
_PER_LAYER = "per_layer_config"
_COUNT = "num_hidden_layers"


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    """Returns key of the state dict -> shape."""
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def made_shapes(kind: type[nn.Module], config: Any) -> Shapes | None:
    """Returns the shapes that a class makes of a configuration; None if it makes no network."""
    try:
        with torch.device("meta"):
            return shapes_of(kind(copy.deepcopy(config)))
    except Exception:  # whatever a class raises about widths that do not go together
        return None


def numbered_anew(keys: Iterable[str]) -> dict[str, str]:
    """Returns key of a state dict -> the same with layers counted on where some have no tensors.

    Such a layer is left out, so that what it does is nothing, and its class can do without.
    """
    keys = list(keys)
    stacks = _stacks(keys)
    found = {}
    for key in keys:
        place = _LAYER.search(key)
        if place is not None:
            stack = key[: place.start()]
            number = stacks[stack].index(int(place[1]))
            found[key] = f"{stack}.{number}.{key[place.end() :]}"
    return {key: found.get(key, key) for key in keys}


def layers_of(keys: Iterable[str]) -> list[int]:
    """Returns the numbers of the layers that have tensors, of the stack with the fewest."""
    return min(_stacks(keys).values(), key=len, default=[])


def _stacks(keys: Iterable[str]) -> dict[str, list[int]]:
    """Returns what a stack of layers is called -> the numbers of those that have tensors."""
    found: dict[str, set[int]] = {}
    for key in keys:
        if (place := _LAYER.search(key)) is not None:
            found.setdefault(key[: place.start()], set()).add(int(place[1]))
    return {stack: sorted(numbers) for stack, numbers in found.items()}


def fitting_configs(
    kind: type[nn.Module], config: Any, wanted: Shapes, layers: Sequence[int] = ()
) -> Iterator[Any]:
    """Yields configurations of which a class makes tensors of these names and shapes.

    More than one, because numbers of heads need not show in shapes: what follows the first has the
    same shapes, and one number changed.

    Args:
        kind: A class of ``transformers``.
        config: Of the uncompressed network; not changed.
        wanted: Of the compressed one, its layers numbered anew.
        layers: Numbers in the uncompressed network of the layers that stay.
    """
    search = _Search(kind, wanted, layers)
    found = search.by_layer(search.overall(_Made(config, made_shapes(kind, config))))
    if found is None or search.distance(found):
        return
    yield found.config
    for move in _moves(found.config, _pairs(made_shapes(kind, config), wanted)):
        other = search.after(config=found.config, moves=[move])
        if other is not None and not search.distance(other):
            yield other.config


@dataclass(frozen=True)
class _Made:
    """A configuration, and the shapes that the class makes of it; None if it makes no network."""

    config: Any
    shapes: Shapes | None


@dataclass(frozen=True)
class _Move:
    """A number of a configuration to change, of one layer or of all."""

    name: str
    value: int
    layer: int | None = None


class _Search:
    """Steps from one configuration to a better one.

    Args:
        kind: The class.
        wanted: Shapes that are searched for.
        layers: Numbers of the layers that stay.
    """

    def __init__(self, kind: type[nn.Module], wanted: Shapes, layers: Sequence[int] = ()) -> None:
        self._kind, self._wanted, self._layers = kind, wanted, layers

    def after(self, config: Any, moves: list[_Move]) -> _Made | None:
        """Returns a configuration with numbers changed, if the class makes a network of it."""
        try:
            changed = _changed(config, moves, self._layers)
        except Exception:  # whatever a configuration raises about a value
            return None
        shapes = made_shapes(self._kind, changed)
        return None if shapes is None else _Made(changed, shapes)

    def distance(self, made: _Made, layer: int | None = None) -> int:
        """Returns how many axes have another length than wanted."""
        found = made.shapes or {}
        keys = found.keys() | self._wanted.keys()
        if layer is not None:
            keys = {key for key in keys if _layer_of(key) == layer}
        return sum(_apart(found.get(key), self._wanted.get(key)) for key in keys)

    def overall(self, made: _Made) -> _Made:
        """Changes numbers of all layers as long as that brings the shapes nearer."""
        while made.shapes is not None and self.distance(made):
            moves = _moves(made.config, _pairs(made.shapes, self._wanted))
            single = [[move] for move in moves]
            pairs = [[a, b] for a, b in itertools.combinations(moves, 2) if a.name != b.name]
            better = self._best(made, single) or self._best(made, pairs)
            if better is None:
                break
            made = better
        return made

    def by_layer(self, made: _Made) -> _Made | None:
        """Changes numbers of single layers; None if that brings no layer nearer."""
        if made.shapes is None or not hasattr(type(made.config), _PER_LAYER):
            return made
        for layer in sorted({n for key in self._wanted if (n := _layer_of(key)) is not None}):
            while self.distance(made, layer):
                moves = _moves(made.config, _pairs(made.shapes or {}, self._wanted, layer), layer)
                better = self._best(made, [[move] for move in moves])
                if better is None:  # nor would another layer: its class does not read them
                    return None
                made = better
        return made

    def _best(self, made: _Made, tries: list[list[_Move]]) -> _Made | None:
        least, found = self.distance(made), None
        for moves in tries:
            other = self.after(made.config, moves)
            if other is not None and (far := self.distance(other)) < least:
                least, found = far, other
        return found


def _apart(found: tuple[int, ...] | None, wanted: tuple[int, ...] | None) -> int:
    if found is None or wanted is None or len(found) != len(wanted):
        return max(len(found or ()), len(wanted or ()), 1)
    return sum(a != b for a, b in zip(found, wanted, strict=True))


def _layer_of(key: str) -> int | None:
    found = _LAYER.search(key)
    return None if found is None else int(found[1])


def _pairs(found: Shapes | None, wanted: Shapes, layer: int | None = None) -> set[tuple[int, int]]:
    """Returns lengths of axes and what they should be, where that is something else.

    Of all layers together also their number.
    """
    pairs = {
        (old, new)
        for key, shape in (found or {}).items()
        if len(wanted.get(key, ())) == len(shape) and layer in (None, _layer_of(key))
        for old, new in zip(shape, wanted[key], strict=True)
        if old != new
    }
    if layer is None:
        old, new = (len({_layer_of(k) for k in keys} - {None}) for keys in (found or {}, wanted))
        pairs |= {(old, new)} if 0 < new < old else set()
    return pairs


def _moves(config: Any, pairs: set[tuple[int, int]], layer: int | None = None) -> list[_Move]:
    """Returns the changes of numbers that could be behind axes of other lengths.

    Whole axes, or what an axis is a multiple of: heads, and widths of fused layers. A number that
    may be left out (the width of a hidden layer of GPT-2) can be the length itself.
    """
    values = config.to_dict()
    own = values.get(_PER_LAYER, {})
    if layer is not None:
        values |= next((more for key, more in own.items() if int(key) == layer), {})
    # Heads are cut as wholes.
    fixed = {"head_dim", getattr(config, "attribute_map", {}).get("head_dim")}
    found: dict[_Move, None] = {}
    for name, value in values.items():
        for old, new in sorted(pairs):
            number: int | None = None
            if value is None and name in _optional_numbers(type(config)):
                number = new
            elif type(value) is int and value > 0 and not (old % value or value * new % old):
                number = value * new // old
            if number and name not in fixed:
                found[_Move(name, number, layer)] = None
    return list(found)


def _optional_numbers(kind: type) -> set[str]:
    """Returns the integers of a configuration that may be None."""
    notes = {k: str(v) for c in kind.__mro__ for k, v in inspect.get_annotations(c).items()}
    return {name for name, note in notes.items() if re.search(r"\bint\b", note) and "None" in note}


def _changed(config: Any, moves: list[_Move], layers: Sequence[int]) -> Any:
    changed = copy.deepcopy(config)
    count = getattr(config, "attribute_map", {}).get(_COUNT, _COUNT)
    for move in moves:
        if move.layer is not None:
            stored = changed.to_dict().get(_PER_LAYER, {})
            own = {int(key): dict(more) for key, more in stored.items()}
            own.setdefault(move.layer, {})[move.name] = move.value
            changed.per_layer_config = own
            continue
        if move.name == count:
            old = getattr(config, count)
            for name, value in config.to_dict().items():
                each = isinstance(value, list) and "layer" in name  # such as layer_types
                if each and len(value) == old > max(layers):
                    setattr(changed, name, [value[layer] for layer in layers])
        setattr(changed, move.name, move.value)
    if hasattr(changed, "validate"):  # or the file would not be read
        changed.validate()
    return changed
