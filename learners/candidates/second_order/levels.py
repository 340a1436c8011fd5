"""Solved layers by level (bits, density, ...), so that a plan is put together from what is known.

A level of a layer depends on nothing of the other layers (the *level database* of Sieberling et al.
2024, "EvoPress", 2410.14649): a search meets it in many plans, and solves it once.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.candidates.second_order.tensor_files import DISK, TensorFiles

MEMORY = 256 * 2**20
"""Bytes that are held; beyond that the levels that were not asked for longest go."""

LEVELS = "levels"
"""Name of their folder in that of a run."""

Key = tuple[str | int | float, ...]
Level = Mapping[str, Tensor]
"""Whatever a layer of that level consists of, by name."""


class Levels:
    """What was solved: key -> tensors. The same key always has the same solution.

    Args:
        memory: Bytes to hold; the level that was asked for last is held in any case.
        device: Where levels are.
        disk: Bytes that files may take.

    Attributes:
        folder: Where levels go that are not held any more, one file each; ``None`` where they are
            solved again. Several processes may share it: files are written whole, and the same by
            all.
    """

    def __init__(
        self, memory: int = MEMORY, device: torch.device | str = "cpu", disk: int = DISK
    ) -> None:
        self._files: TensorFiles | None = None
        self._owner = ""
        self._memory = memory
        self._disk = disk
        self._device = str(device)
        self._held: OrderedDict[Key, Level] = OrderedDict()
        self._bytes = 0

    @property
    def folder(self) -> Path | None:
        """Where levels go that are not held any more."""
        return None if self._files is None else self._files.folder

    def get(self, key: Key, solve: Callable[[], Level]) -> Level:
        """Returns a level, solved if it is not known; its tensors are not to be changed."""
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        level = self._read(key)
        if level is None:
            level = solve()
        self._held[key] = level
        self._bytes += _size(level)
        while self._bytes > self._memory and len(self._held) > 1:
            self._let_go(*self._held.popitem(last=False))
        return level

    def keep_in(self, folder: Path, owner: str) -> None:
        """Lets levels that are not held any more go to files, and takes those that are there.

        Args:
            folder: Made when it is needed, in a folder that is there.
            owner: All that levels of the same key depend on: network, data, options.
        """
        self._files, self._owner = TensorFiles(folder, self._disk), owner

    def _let_go(self, key: Key, level: Level) -> None:
        self._bytes -= _size(level)
        if self._files is not None:
            self._files.write(self._name(key), level)

    def _read(self, key: Key) -> Level | None:
        if self._files is None:
            return None
        return self._files.read(self._name(key), self._device)

    def _name(self, key: Key) -> str:
        return repr((self._owner, *key))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be solved again, or is in a file."""
        return vars(self) | {"_held": OrderedDict(), "_bytes": 0}


def keep_levels(learner: Any, folder: Path, owner: str) -> None:
    """Lets a learner, or the parts of one, keep its levels in a folder beyond what memory holds.

    Args:
        learner: Any learner; one that solves no levels has nothing to keep.
        folder: See :meth:`Levels.keep_in`.
        owner: Likewise.
    """
    for index, part in enumerate([learner, *getattr(learner, "parts", ())]):
        found = getattr(part, "levels", None)
        if isinstance(found, Levels):
            found.keep_in(folder, f"{owner} {index}")


def _size(level: Level) -> int:
    return sum(x.nbytes for x in level.values())
