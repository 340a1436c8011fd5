"""Widths that a module holds in attributes, for forwards that cannot be rewritten.

``split(self.split_size)`` in GPT-2 is right once the attribute is; nothing else in the code has to
change. Which attributes hold a width that a cut changes cannot be read off their values: half of
the heads halve ``split_size``, but not ``head_dim``. Candidates are tried, the fewest first, and
the proof of the group tells.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.rewriting.rewrites import Obstacle

_MAX_TOGETHER = 2  # attributes that one group changes
_MAX_TRIALS = 12


@dataclass
class Attributes:
    """Numbers of a module that shrink with a channel group; stands among the rewrites.

    Args:
        name: Qualified module name.
        values: Attribute -> its value in the original.
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
        for attribute, value in self.values.items():
            setattr(module, attribute, value // self.size * kept)


def find_attributes(
    model: nn.Module,
    obstacles: Sequence[Obstacle],
    units: range,
    is_right: Callable[[Attributes], bool],
) -> Attributes | None:
    """Returns what makes the cut of a group right, None if no attributes of one module do.

    Args:
        model: The network.
        obstacles: Modules that would have to be rewritten.
        units: The units of the group.
        is_right: Tries it.
    """
    trials = (
        Attributes(obstacle.name, values, units.start, len(units))
        for obstacle in obstacles
        if bool(obstacle.touched[list(units)].any())
        for values in _candidates(model.get_submodule(obstacle.name), len(units))
    )
    tried = (trial for trial, _ in zip(trials, range(_MAX_TRIALS), strict=False))
    return next((trial for trial in tried if is_right(trial)), None)


def _candidates(module: nn.Module, size: int) -> Iterator[dict[str, int]]:
    numbers = {
        name: value
        for name, value in vars(module).items()
        if type(value) is int and value >= size and value % size == 0
    }
    for count in range(1, _MAX_TOGETHER + 1):
        for names in combinations(numbers, count):
            yield {name: numbers[name] for name in names}
