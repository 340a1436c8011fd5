"""Finds residual branches: sums of a tensor and of what modules made of it alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from amc_compress.learners.tracing.branches.flow import Flow, ModuleCall
from amc_compress.learners.tracing.branches.left_out import Place

_ELSEWHERE = "what it computes is read elsewhere, too"
_USED_ELSEWHERE = "its layers run elsewhere, too"
_NO_EXIT = "what it adds is computed outside of its modules"
_OTHER_FORM = "its modules return something else than tensors"


@dataclass(frozen=True)
class _Region:
    """What lies between a tensor and what is added to it.

    Args:
        source: The operation whose result it is added to.
        end: The operation whose result is added.
        inside: The operations, as bits.
        is_written: Whether the sum is written where that result was.
    """

    source: int
    end: int
    inside: int
    is_written: bool


def find_places(flow: Flow, model: nn.Module) -> tuple[list[Place], dict[str, str]]:
    """Returns the branches that may be left out, and why others may not.

    Args:
        flow: A run of the network.
        model: The network.
    """
    places: list[Place] = []
    reasons: dict[str, str] = {}
    sizes = {n: sum(p.numel() for p in m.parameters()) for n, m in model.named_modules()}
    layers = {n for n, m in model.named_modules() if sizes[n] and not [*m.children()]}
    for region, is_private in _regions(flow):
        modules = _modules_in(flow, region)
        held = [name for name in modules if sizes[name]]
        if not held:
            shared = [n for n in _running_in(flow, region) if n in layers]
            reasons |= {n: _USED_ELSEWHERE for n in shared if n not in reasons}
            continue
        largest = max(held, key=lambda name: sizes[name])
        if not is_private:
            reasons.setdefault(largest, _ELSEWHERE)
            continue
        found = _place(flow, region, modules, largest)
        if isinstance(found, Place):
            places.append(found)
        else:
            reasons.setdefault(largest, found)
    return _named(places), reasons


def _regions(flow: Flow) -> list[tuple[_Region, bool]]:
    """Returns what lies between a tensor and its sum, and whether it is read nowhere else."""
    above: list[int] = []  # of each operation those that it depends on, as bits
    readers: dict[int, set[int]] = {}
    for number, operation in enumerate(flow.operations):
        bits = 0
        for read in operation.reads:
            bits |= above[read] | 1 << read
            readers.setdefault(read, set()).add(number)
        above.append(bits)
    found = []
    for number, operation in enumerate(flow.operations):
        if operation.addends is None:
            continue
        first, second = operation.addends
        for source, end in ((first, second), (second, first)):
            if not above[end] >> source & 1:
                continue
            between = [
                n for n in range(source + 1, end + 1)
                if above[n] >> source & 1 and (n == end or above[end] >> n & 1)
            ]  # fmt: skip
            inside = sum(1 << n for n in between)
            is_private = all(
                n not in flow.outputs and readers[n] <= {number, *between} for n in between
            )
            written = operation.adds_to_first and end == first
            found.append((_Region(source, end, inside, written), is_private))
    return found


def _modules_in(flow: Flow, region: _Region) -> list[str]:
    """Returns the largest modules all of whose operations are in a region."""
    outside: set[str] = set()
    for number, operation in enumerate(flow.operations):
        if not region.inside >> number & 1:
            outside |= operation.modules
    whole = [name for name in _running_in(flow, region) if name not in outside]
    return [
        name for name in whole
        if not any(name.startswith(f"{other}.") for other in whole)
    ]  # fmt: skip


def _running_in(flow: Flow, region: _Region) -> list[str]:
    """Returns the modules some of whose operations are in a region."""
    found: dict[str, None] = {}
    for number, operation in enumerate(flow.operations):
        if region.inside >> number & 1:
            found |= dict.fromkeys(sorted(operation.modules))
    return list(found)


def _place(flow: Flow, region: _Region, modules: Sequence[str], largest: str) -> Place | str:
    calls: dict[str, ModuleCall] = {c.module: c for c in flow.calls if c.module in modules}
    exits = [name for name in modules if region.end in calls[name].results]
    if not exits:
        return _NO_EXIT
    if any(not c.is_known or c.source is None for c in calls.values()):
        return _OTHER_FORM
    stand_ins = {}
    for name, call in calls.items():
        items = None if call.is_plain else tuple(x is not None for x in call.results)
        is_scalar = name == exits[0] and not region.is_written
        assert call.source is not None
        stand_ins[name] = (call.source, is_scalar, items)
    last = next((c.module for c in flow.calls if c.is_plain and c.results == (region.end,)), None)
    is_direct = calls[modules[0]].reads == region.source
    return Place(largest, stand_ins, exits[0], last if is_direct else None)


def _named(places: Sequence[Place]) -> list[Place]:
    """Names branches after the module around all of their modules, if that tells them apart.

    Several of one name have numbers.
    """
    around = [_common(place.modules) for place in places]
    count = Counter(around)
    taken = {place.name for place in places}
    found: dict[str, Place] = {}
    for place, name in zip(places, around, strict=True):
        is_clear = name and count[name] == 1 and (name == place.name or name not in taken)
        chosen, number = name if is_clear else place.name, 1
        while (unique := chosen if number == 1 else f"{chosen}#{number}") in found:
            number += 1
        found[unique] = replace(place, name=unique)
    return [*found.values()]


def _common(modules: Mapping[str, object]) -> str:
    paths = [name.split(".") for name in modules]
    shared = []
    for parts in zip(*paths, strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return ".".join(shared)
