"""Folders that do not outlive the process that made them, for longer than till the next one."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path
from typing import IO

from amc_env.support.closing import Closing

_LOCK = ".alive"


class TemporaryFolder(Closing):
    """A folder of this user alone, removed when it is closed or goes, or this process exits.

    A process that is killed leaves it; then the next one that makes a folder of the same kind
    removes it. The lock of a file in it tells: the system ends it with the process, in whatever
    container that was.

    Args:
        kind: What it is for: ``/tmp/amc-KIND-...``.

    Attributes:
        path: The folder.
    """

    def __init__(self, kind: str) -> None:
        _remove_left(f"amc-{kind}-")
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"amc-{kind}-"))
            lock = (self.path / _LOCK).open("w")
            if _is_ours(lock) and (self.path / _LOCK).exists():
                break
            lock.close()  # another process has just taken it for one that was left
        self._end = weakref.finalize(self, _end, self.path, lock, os.getpid())

    def close(self) -> None:
        """Removes the folder and what is in it."""
        self._end()


def _end(path: Path, lock: IO[str], process: int) -> None:
    lock.close()  # Windows removes no file that is open
    if os.getpid() == process:  # not one that was forked
        shutil.rmtree(path, ignore_errors=True)


def _remove_left(prefix: str) -> None:
    """Removes folders whose process is gone; those that cannot be read are not ours."""
    if os.name == "nt":  # it has no locks to tell by
        return
    for path in Path(tempfile.gettempdir()).glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            facts = path.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != os.getuid():
                continue
            with (path / _LOCK).open("r+") as lock:
                _lock(lock)
                shutil.rmtree(path, ignore_errors=True)


def _is_ours(lock: IO[str]) -> bool:
    try:
        _lock(lock)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a place without locks, where no process takes a folder for one that was left
    return True


def _lock(file: IO[str]) -> None:
    """Locks an open file until it is closed.

    Raises:
        BlockingIOError: If another process has.
        OSError: If the place knows no locks.
    """
    with contextlib.suppress(ImportError):  # Windows
        import fcntl

        fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
