"""Solved layers by level (bits, density, ...), so that a plan is put together from what is known.

A level of a layer depends on nothing of the other layers (the *level database* of Sieberling et al.
2024, "EvoPress", 2410.14649): a search meets it in many plans, and solves it once.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from amc_env.errors import RunFolderError
from amc_env.files import save_bytes

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
        memory: Bytes to hold.
        device: Where levels are.

    Attributes:
        folder: Where levels go that are not held any more, one safetensors file each; ``None``
            where they are solved again. Several processes may share it: files are written whole,
            and the same by all.
    """

    def __init__(self, memory: int = MEMORY, device: torch.device | str = "cpu") -> None:
        self.folder: Path | None = None
        self._owner = ""
        self._memory = memory
        self._device = str(device)
        self._held: OrderedDict[Key, Level] = OrderedDict()
        self._bytes = 0

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
        self.folder, self._owner = folder, owner

    def _let_go(self, key: Key, level: Level) -> None:
        self._bytes -= _size(level)
        path = self._path(key)
        # An aid: where there is no room, and on a machine without the folder, it is solved again.
        if path is not None and path.parent.parent.is_dir() and not path.exists():
            with contextlib.suppress(RunFolderError):
                save_bytes(path, save({name: x.contiguous() for name, x in level.items()}))

    def _read(self, key: Key) -> Level | None:
        path = self._path(key)
        if path is None or not path.is_file():
            return None
        with contextlib.suppress(SafetensorError, OSError):
            return load_file(path, device=self._device)
        return None

    def _path(self, key: Key) -> Path | None:
        if self.folder is None:
            return None
        name = hashlib.sha256(repr((self._owner, *key)).encode()).hexdigest()
        return self.folder / f"{name[:32]}.safetensors"

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
