"""File locks between processes."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from amc_env import RunFolderError


@contextlib.contextmanager
def only_one(path: Path) -> Iterator[None]:
    """Lets one process at a time work on a file or folder, while the block lasts.

    Raises:
        RunFolderError: If another one is at it.
    """
    try:
        import fcntl
    except ImportError:  # Windows: no advisory locks, the user has to take care
        yield
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunFolderError(
                f"Another process is working on {path}; wait for it, or choose another place."
            ) from error
        yield
