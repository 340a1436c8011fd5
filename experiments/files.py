"""Files that are either the old ones or the new ones, never half of each."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from amc_env import RunFolderError

# errno values that mean "no more room": a full disk, and a full quota.
_FULL = {errno.ENOSPC, errno.EDQUOT}
_NO_MEMORY = ("can't allocate memory", "not enough memory", "out of memory")


def is_disk_full(error: BaseException) -> bool:
    """Whether an exception (or what caused it) means that the disk is full."""
    current: BaseException | None = error
    while current is not None:
        if isinstance(current, OSError) and current.errno in _FULL:
            return True
        # torch's zip writer and safetensors wrap the operating system's error into text.
        text = str(current)
        if "No space left on device" in text or "PytorchStreamWriter failed" in text:
            return True
        current = current.__cause__ or current.__context__
    return False


def is_memory_full(error: BaseException) -> bool:
    """Whether an exception (or what caused it) means that there is not enough memory."""
    current: BaseException | None = error
    while current is not None:
        # torch.OutOfMemoryError by its name, because this module does not import torch.
        if isinstance(current, MemoryError) or type(current).__name__ == "OutOfMemoryError":
            return True
        text = str(current)
        if isinstance(current, RuntimeError) and any(sign in text for sign in _NO_MEMORY):
            return True
        current = current.__cause__
    return False


def write_atomic(path: Path, content: bytes | str) -> None:
    """Writes a file so that a reader, or a crash at any moment, sees all of it or none of it.

    Raises:
        OSError: If it cannot be written; the file at ``path`` is then what it was before.
    """
    data = content.encode() if isinstance(content, str) else content
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def replace(temporary: Path, path: Path) -> None:
    """Renames over ``path`` and makes the rename last through a power cut."""
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synchronised
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, document: Any) -> None:
    """Writes a JSON document atomically."""
    write_atomic(path, json.dumps(document, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, form: str, version: int) -> dict[str, Any]:
    """Reads a JSON document that says what it is.

    Args:
        path: The file.
        form: Expected value of its ``format`` key.
        version: Expected value of its ``version`` key.

    Raises:
        RunFolderError: If the file is missing, cut short, something else, or of another version.
    """
    try:
        document = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise RunFolderError(
            f"{path.parent} is no run folder: {path.name} is missing; expected a folder that "
            f"amc made with --out."
        ) from error
    except (ValueError, OSError) as error:
        raise RunFolderError(
            f"{path} is damaged or cut short ({error}); restore it, or start the run again in a "
            f"new folder."
        ) from error
    if not isinstance(document, dict) or document.get("format") != form:
        raise RunFolderError(
            f"{path} is not what this program writes (expected format {form!r}); choose another "
            f"folder."
        )
    if document.get("version") != version:
        raise RunFolderError(
            f"{path} has version {document.get('version')}, this release reads version {version}; "
            f"use the release that wrote it, or start again in a new folder."
        )
    return document
