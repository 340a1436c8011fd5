"""Finds the tensors that fit a network in any checkpoint.

Every mapping from names to tensors anywhere in the file is tried, with every prefix under which it
holds the network's names (``module.``, ``model.``, ``ema.``, ...) and with the names that wrappers
put in between (``_orig_mod``, ``module``). What fits has all of the network's tensors with their
shapes, and nothing under the same prefix that the network lacks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from amc_compress.learners.packing.sharing import shared_names
from amc_env.validation.sentences import some

_DEPTH = 4
_WRAPPERS = frozenset(("_orig_mod", "module"))  # of torch.compile; of (Distributed)DataParallel
_BOOKKEEPING = frozenset(("total_ops", "total_params", "n_averaged", "num_batches_tracked"))
"""Last parts of names that profilers and averages leave in a state dict; no weights."""
_AVERAGES = frozenset(("ema", "emas", "swa", "average", "averaged", "avg", "shadow"))
_SHOWN = 3


@dataclass(frozen=True)
class Fit:
    """One way to take a network's tensors from a file.

    Args:
        name: Where they lie, e.g. ``"state_dict.model"``; empty for the whole file.
        tensors: Name in the network -> tensor, only those that the network has.
        problems: What does not fit, a phrase each; empty if everything does.
        left_out: Names that do not belong to the network and are no weights of it.
        compared: Tensors that the network and the file share by name and shape.
    """

    name: str
    tensors: Mapping[str, Tensor]
    problems: tuple[str, ...]
    left_out: tuple[str, ...]
    compared: int

    @property
    def is_average(self) -> bool:
        """Whether these are averaged weights, by the names that they are stored under."""
        words = set(self.name.lower().replace("_", ".").split("."))
        return bool(words & _AVERAGES) or "n_averaged" in self.left_out

    def note(self, others: list[Fit]) -> str:
        """Returns what was taken and what was not, in one line; empty where all was obvious."""
        parts = []
        if self.name or self.is_average:
            kind = "averaged weights" if self.is_average else "weights"
            parts.append(f"{kind} under {self.name!r}" if self.name else kind)
        if self.left_out:
            shown = ", ".join(self.left_out[:_SHOWN])
            more = ", ..." if len(self.left_out) > _SHOWN else ""
            tensors = "tensor" if len(self.left_out) == 1 else "tensors"
            parts.append(f"{len(self.left_out)} other {tensors} left out ({shown}{more})")
        if others:
            names = " or ".join(f"FILE::{other.name or '.'}" for other in others[:_SHOWN])
            parts.append(f"the file also holds others that fit: choose with {names}")
        return "; ".join(parts)


def find_fits(loaded: object, model: nn.Module) -> list[Fit]:
    """Returns all candidates in a loaded file: those that fit first, then the nearest.

    Raw weights come before averaged ones, outer mappings before inner ones.

    Args:
        loaded: What the file holds.
        model: The network; only names and shapes are read.
    """
    expected, same = model.state_dict(), _same(model)
    fits: list[Fit] = []
    for path, tensors in _mappings(loaded, (), set()):
        names = _Names.of(tensors, expected)
        for prefix in _prefixes(names):
            fits.append(_fit(path, prefix, names, tensors, expected, same))
    # A stable sort: in the order of the file where nothing else decides.
    fits.sort(key=lambda fit: (len(fit.problems), fit.is_average, fit.name.count(".")))
    return fits


def contents(loaded: object) -> str:
    """Returns what a file holds at its top, for messages."""
    if not isinstance(loaded, Mapping):
        return type(loaded).__name__
    return some((f"{key!r} ({_kind(value)})" for key, value in loaded.items()), 6)


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"tensor {list(value.shape)}"
    if isinstance(value, Mapping):
        n_tensors = sum(isinstance(item, Tensor) for item in value.values())
        return f"{n_tensors} tensors" if n_tensors else f"{len(value)} entries"
    return type(value).__name__


def _mappings(
    value: object, path: tuple[str, ...], seen: set[int]
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Tensor]]]:
    """Yields every mapping that holds tensors under names, outer ones first."""
    if isinstance(value, nn.Module):
        value = value.state_dict()
    if isinstance(value, list | tuple):
        value = {str(index): item for index, item in enumerate(value[:16])}
    if not isinstance(value, Mapping) or id(value) in seen or len(path) > _DEPTH:
        return
    seen.add(id(value))
    named = {key: item for key, item in value.items() if isinstance(key, str)}
    tensors = {key: item for key, item in named.items() if isinstance(item, Tensor)}
    if tensors:
        yield path, tensors
    for key, item in named.items():
        if not isinstance(item, Tensor):
            yield from _mappings(item, (*path, key), seen)


@dataclass(frozen=True)
class _Names:
    """Names with and without the parts that wrappers put in.

    Args:
        stored: Name without them -> name in the file.
        wanted: Name in the network -> name without them.
    """

    stored: Mapping[str, str]
    wanted: Mapping[str, str]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> _Names:
        """Returns the names; as they are, if two of them would become one."""
        stored, wanted = {_bare(key): key for key in tensors}, {key: _bare(key) for key in expected}
        if len(stored) < len(tensors) or len(set(wanted.values())) < len(wanted):
            return cls({key: key for key in tensors}, {key: key for key in expected})
        return cls(stored, wanted)


def _bare(key: str) -> str:
    return ".".join(part for part in key.split(".") if part not in _WRAPPERS)


def _prefixes(names: _Names) -> list[str]:
    """Returns the prefixes under which most of the network's names occur."""
    wanted = set(names.wanted.values())
    counts: dict[str, int] = {}
    for name in names.stored:
        parts = name.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in wanted:
                prefix = "".join(f"{part}." for part in parts[:start])
                counts[prefix] = counts.get(prefix, 0) + 1
    most = max(counts.values(), default=0)
    return [prefix for prefix, count in counts.items() if count == most]


def _same(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Returns name -> the other names of the same tensor; files may hold it under any of them."""
    groups: dict[str, list[str]] = {}
    known = model.state_dict()
    for name, first in shared_names(model).items():
        if name in known and first in known:
            groups.setdefault(first, [first]).append(name)
    return {
        name: tuple(other for other in group if other != name)
        for group in groups.values()
        for name in group
    }


def _fit(
    path: tuple[str, ...],
    prefix: str,
    names: _Names,
    tensors: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    same: Mapping[str, tuple[str, ...]],
) -> Fit:
    found: dict[str, Tensor] = {}
    problems: list[str] = []
    for key, want in expected.items():
        called = (prefix + names.wanted[name] for name in (key, *same.get(key, ())))
        stored = next((names.stored[name] for name in called if name in names.stored), None)
        if stored is None:
            if not _is_bookkeeping(key):
                problems.append(f"{key!r} is missing (expected shape {list(want.shape)})")
        elif problem := _mismatch(tensors[stored], want):
            problems.append(f"{key!r} {problem}")
        else:
            found[key] = tensors[stored]
    known = {prefix + name for name in names.wanted.values()}
    unknown = [name for name in names.stored if name not in known]
    left_out = [n for n in unknown if not n.startswith(prefix) or _is_bookkeeping(n)]
    problems += [
        f"{name.removeprefix(prefix)!r} is unknown to the network"
        for name in unknown
        if name not in left_out
    ]
    where = ".".join(part for part in (*path, *prefix.split(".")) if part)
    return Fit(where, found, tuple(problems), tuple(left_out), len(found))


def _is_bookkeeping(name: str) -> bool:
    return name.rpartition(".")[2] in _BOOKKEEPING


def _mismatch(got: Tensor, want: Tensor) -> str:
    """Returns why a tensor cannot take another's place, empty if it can."""
    if got.shape != want.shape:
        return f"has shape {list(got.shape)}, expected {list(want.shape)}"
    if got.layout is not torch.strided or got.is_quantized or got.is_meta:
        form = "meta" if got.is_meta else "quantized" if got.is_quantized else "sparse"
        return f"is a {form} tensor, expected a dense one with numbers"
    if got.is_floating_point() != want.is_floating_point():
        return f"has type {got.dtype}, expected {want.dtype}"
    if got.is_floating_point() and got.dtype.itemsize < 2:
        return f"has type {got.dtype} without its scale, expected 16 bits or more"
    return ""
