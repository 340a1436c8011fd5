"""Explores the paths of a network: both modes, both branches, other inputs."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
from torch import nn

from amc_compress.learners.networks.outputs import tensors_in
from amc_compress.learners.tasks.inputs import Inputs, rows
from amc_compress.learners.tracing.cases import Case, Path, follow, parameter_storages
from amc_compress.learners.tracing.examples.variations import (
    floats,
    is_large,
    noise,
    padded,
    resized,
    shrunk,
    with_noise,
)

# Runs that look for further paths in each mode; the forwards of one proof are many more.
_MAX_RUNS = 32
# Paths on which every group proves itself alone; on further ones all groups do so together.
_MAX_ALONE = 6
_MANY = 16  # random inputs, of which some get through any rectifier
# Answers tried in place of an integer read from data, such as the number of an expert.
_MAX_INTEGER = 8
# Larger and smaller by a part of the side, or the double and the half: (numerator, steps).
_LARGER, _SMALLER = ((1, 2), (1, 1), (4, 4)), ((-1, -2), (-1, -1), (-2, -2))


@dataclass
class Probes:
    """The cases in which a network is traced and proved.

    Args:
        example: The usual one: its work is what costs count.
        paths: Further ones that run other code than the example: labels follow all of them.
        alone: Where every group proves itself alone.
        together: Where all groups prove themselves together.
        wide: Many random inputs, for a group that no output of the others depends on.
        unseen: Parameters that no case reads.
        modules: Modules that ran in some case.
    """

    example: Case
    paths: list[Case] = field(default_factory=list)
    alone: list[Case] = field(default_factory=list)
    together: list[Case] = field(default_factory=list)
    wide: list[Case] = field(default_factory=list)
    unseen: tuple[str, ...] = ()
    modules: frozenset[str] = frozenset()

    @property
    def labelled(self) -> list[Case]:
        """Cases that labels follow, the one that costs count first."""
        return [self.example, *self.paths]


def find_probes(model: nn.Module, inputs: Inputs, generator: torch.Generator) -> Probes:
    """Explores the paths of a network.

    Args:
        model: A network in evaluation mode; it stays as it is.
        inputs: What it runs on.
        generator: Source of random inputs.
    """
    return _Search(model, inputs, generator).probes()


class _Search:
    def __init__(self, model: nn.Module, inputs: Inputs, generator: torch.Generator) -> None:
        self.model = model
        self.generator = generator
        self.names = parameter_storages(model)
        self.seen: set[tuple[int, bool]] = set()  # keys of paths, by mode
        self.touched: set[str] = set()
        self.modules: set[str] = set()
        self.has_decisions = False
        self.found = Probes(Case(inputs))

    def probes(self) -> Probes:
        """Returns what was found."""
        found, inputs = self.found, self.found.example.inputs
        first = self._follow(found.example)
        whole, inputs = inputs, self._smaller(inputs, first)
        pair = with_noise(inputs, 1, self.generator)
        # Where large images cannot be smaller there is one: all groups together are proved on two.
        main = Case(rows(pair, slice(1, 2)) if inputs is whole and is_large(inputs) else pair)
        path = self._follow(main)
        if path is None:  # a network for one sample at a time
            main, path = found.example, first
        else:
            many = with_noise(inputs, _MANY - 1, self.generator)
            found.wide.append(replace(main, inputs=many))
            if path.key != (first or path).key:
                found.paths.append(main)
        found.alone.append(main)
        triple = with_noise(inputs, 2, self.generator)
        self._light(replace(main, inputs=triple, what=" on a batch of another size"))
        self._sizes(inputs)
        self._padded(main)
        if is_large(whole):
            self._light(Case(with_noise(whole, 1, self.generator), " on inputs of full size"))
        self._natural(main)
        if path is not None:
            self._answers(main, path)
        self._training(replace(main, inputs=triple), inputs, path)
        if self.modules:  # else nothing can be followed, and nothing said
            found.unseen = tuple(sorted(self._missing()))
        found.modules = frozenset(self.modules)
        return found

    def _smaller(self, inputs: Inputs, path: Path | None) -> Inputs:
        """Returns the smallest cut of large images that runs the code of the whole ones.

        Every group is proved alone on it, and all of them together on the whole ones too.
        """
        for small in shrunk(inputs) if path is not None else ():
            found = follow(self.model, Case(small), self.names)
            if found is not None and path is not None and found.key == path.key:
                return small
        return inputs

    # ------------------------------------------------------------------ notes

    def _follow(self, case: Case) -> Path | None:
        path = follow(self.model, case, self.names)
        if path is not None:
            self.touched |= path.touched
            self.modules |= path.modules
            self.has_decisions |= bool(path.reads) or path.is_dynamic
            self.seen.add((path.key, case.training))
        return path

    def _light(self, case: Case) -> bool:
        """Adds a case for all groups together, and what is new in it; False if it fails."""
        known = set(self.seen)
        path = self._follow(case)
        if path is None:
            return False
        if (path.key, case.training) in known:
            self.found.together.append(case)
        else:
            self._add(case)
        return True

    def _add(self, case: Case) -> None:
        self.found.paths.append(case)
        crowded = len(self.found.alone) >= _MAX_ALONE
        (self.found.together if crowded else self.found.alone).append(case)

    def _other(self, case: Case) -> Path | None:
        """Adds a case if it runs code that none before has run; returns its path then."""
        known = set(self.seen)
        path = self._follow(case)
        if path is None or (path.key, case.training) in known:
            return None
        self._add(case)
        return path

    # ------------------------------------------------------------------ further inputs

    def _sizes(self, inputs: Inputs) -> None:
        for steps in (_LARGER, _SMALLER):
            for other in resized(inputs, steps):
                if self._light(Case(other, " on inputs of another size")):
                    break

    def _padded(self, main: Case) -> None:
        inputs = padded(main.inputs, inspect.signature(self.model.forward).parameters)
        if inputs is None:
            return
        case = Case(inputs, " on padded inputs")
        try:
            outputs = tensors_in(case.run(self.model))
        except Exception:  # a network that takes no zeros there
            return
        if not any(bool(torch.isnan(x).any()) for x in outputs):
            self._light(case)

    def _natural(self, main: Case) -> None:
        """Tries inputs that may lead elsewhere, where something depends on data."""
        if not self._is_incomplete():
            return
        words = " on other data"
        for change in (torch.neg, torch.zeros_like, lambda x: x * 100, torch.abs, lambda x: x / 100,
                       lambda x: -100 * x.abs()):  # fmt: skip
            self._other(Case(floats(change, main.inputs), words))
        for _ in range(2):
            self._other(Case(noise(main.inputs, self.generator), words))

    def _is_incomplete(self) -> bool:
        return self.has_decisions or bool(self._missing())

    def _training(self, case: Case, single: Inputs, usual: Path | None) -> None:
        """Adds training mode; random paths are looked for with several seeds."""
        first: Path | None = None
        for inputs in (case.inputs, single):
            case = Case(inputs, " in training mode", training=True)
            first = self._follow(case)
            if first is not None:
                break
        if first is None:
            return
        if usual is None or first.key != usual.key:
            self.found.paths.append(case)
        if usual is None or first.touched != usual.touched:
            self.found.alone.append(case)
        else:
            self.found.together.append(case)
        for seed in range(1, 4):
            path = self._other(replace(case, seed=seed))
            if path is None and not first.reads:
                break
        self._answers(case, first)

    # ------------------------------------------------------------------ decisions

    def _answers(self, case: Case, path: Path) -> None:
        """Varies data-dependent reads, first one, then more together."""
        words = case.what + " with another decision about the data"
        queue = [(case, path)]
        runs = 0
        while queue:
            case, path = queue.pop(0)
            for index, value in enumerate(path.reads):
                if index in case.answers:
                    continue
                for answer in self._alternatives(value):
                    if runs >= _MAX_RUNS:
                        return
                    runs += 1
                    other = replace(case, answers={**case.answers, index: answer}, what=words)
                    further = self._other(other)
                    if further is not None:
                        queue.append((other, further))

    def _alternatives(self, value: object) -> Iterator[bool | int]:
        if isinstance(value, bool):
            yield not value
        elif isinstance(value, int) and self._missing():
            yield from (x for x in range(_MAX_INTEGER) if x != value)

    def _missing(self) -> set[str]:
        return {name for names in self.names.values() for name in names} - self.touched
