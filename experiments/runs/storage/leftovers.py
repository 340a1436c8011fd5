"""Clean-up after processes that were killed or failed."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

_LEFTOVER = re.compile(r".+\.(\d+)\.(tmp|tmp\.onnx|float\.onnx)")


def remove_leftovers(folder: Path, *, but_of_running: bool = False) -> None:
    """Removes the temporary files of writes that were killed, at any depth of a folder.

    Args:
        folder: The folder; no other process may be writing into it, unless
        but_of_running: files of processes that are running here are left alone.
    """
    for path in list(folder.rglob("*")):
        match = _LEFTOVER.fullmatch(path.name)
        if match is None or path.is_dir() or (but_of_running and _is_running(int(match[1]))):
            continue
        with contextlib.suppress(OSError):
            path.unlink()


def _is_running(process: int) -> bool:
    if os.name == "nt":  # there the signal 0 interrupts
        return True
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # it belongs to another user
        return True
    return True


_WORTHLESS = (
    "config.json", "state.json", "original.safetensors", "warm_start.jsonl", "trials.jsonl",
    "judged_before.jsonl", "curves.json", "levels", "checkpoints", "stages", "tensorboard", ".lock",
)  # fmt: skip
"""What a run has written when it fails before any work was done."""


def remove_run(path: Path, made: Sequence[Path]) -> None:
    """Removes a run without content, and the folders made for it, if empty."""
    remove_leftovers(path)
    for name in _WORTHLESS:
        place = path / name
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # one that is not empty
        for folder in made:
            folder.rmdir()


def is_filled(path: Path) -> bool:
    """Whether a file has content, or a folder files."""
    if path.is_dir():
        return any(part.is_file() for part in path.rglob("*"))
    return path.exists() and path.stat().st_size > 0
