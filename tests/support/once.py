"""What takes long is made once: copies of it in a process, folders in a session."""

from __future__ import annotations

import functools
import hashlib
import io
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from filelock import FileLock

P = ParamSpec("P")
R = TypeVar("R")


class _Contents(pickle.Pickler):
    """Pickles values of tensors; by themselves they pickle with their addresses."""

    def reducer_override(self, item: Any) -> Any:
        if not isinstance(item, torch.Tensor):
            return NotImplemented
        values = item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return tuple, ((values, tuple(item.shape), str(item.dtype), item.requires_grad),)


def key_of(value: Any) -> bytes | None:
    """Returns a key that equal values have in common; None for what does not pickle."""
    file = io.BytesIO()
    try:
        _Contents(file).dump(value)
    except (AttributeError, TypeError, pickle.PicklingError):  # of a lambda, say
        return None
    return hashlib.sha256(file.getbuffer()).digest()


def copies(function: Callable[P, R]) -> Callable[P, R]:
    """Calls a function once for equal arguments; every call returns a copy of its own.

    What is returned together is copied together, so that what is shared stays shared. A test that
    patches what the function uses, or wants it to run twice, calls ``function.__wrapped__``.
    """
    made: dict[bytes, bytes] = {}

    @functools.wraps(function)
    def call(*arguments: P.args, **options: P.kwargs) -> R:
        key = key_of((arguments, sorted(options.items())))
        if key is None:
            return function(*arguments, **options)
        if key not in made:
            made[key] = pickle.dumps(function(*arguments, **options))
        result: R = pickle.loads(made[key])
        return result

    return call


class SharedFolders:
    """Folders that one of the test processes makes and all of them read.

    Args:
        root: Of the session, the same in all processes.
    """

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(exist_ok=True)

    def get(self, name: str, make: Callable[[Path], object]) -> Path:
        """Returns the folder of that name, made by the first who asks; the others wait.

        Args:
            name: Of the folder.
            make: Is told a path, and writes the folder there.
        """
        folder, done = self._root / name, self._root / f"{name}.done"
        with FileLock(self._root / f"{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that has failed
                make(folder)
                done.touch()
        return folder
