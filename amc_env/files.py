"""Atomic file writes: a file is the old one or the new one, never half of each."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from pathlib import Path
from typing import Any

from amc_env import RunFolderError
from amc_env.validation.checks import shown
from amc_env.validation.json_text import parse_json
from amc_env.validation.shapes import check_shape

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


_START_AGAIN = "restore it, or start the run again in a new folder"


def read_content(path: Path, remedy: str = _START_AGAIN, missing: str | None = None) -> bytes:
    """Reads a file of a run.

    Args:
        path: The file.
        remedy: What to do if it cannot be read, as the end of a sentence.
        missing: The sentence to say if it is not there; ``remedy`` if not given.

    Raises:
        RunFolderError: If it is missing, is no file, or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise RunFolderError(f"Expected a file at {path}, got something else; {remedy}.")
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise RunFolderError(missing or f"{path} is missing; {remedy}.") from error
    except OSError as error:
        raise RunFolderError(f"{path} cannot be read ({error.strerror}); {remedy}.") from error


def read_document(
    path: Path, remedy: str = _START_AGAIN, *, missing: str | None = None, shape: Any = Any
) -> Any:
    """Reads a JSON file of a run; every way in which it can be damaged is one sentence.

    Args:
        path: The file.
        remedy: What to do about a damaged file, as the end of a sentence.
        missing: The sentence to say if it is not there; ``remedy`` if not given.
        shape: What it must hold, as :mod:`amc_env.validation.shapes` says it.

    Raises:
        RunFolderError: If it is missing, cannot be read, or holds something else.
    """
    content = read_content(path, remedy, missing)
    try:
        document = parse_json(content)
        check_shape(document, shape)
    except ValueError as error:
        raise RunFolderError(f"{path} is damaged or cut short ({error}); {remedy}.") from error
    return document


def read_json(path: Path, form: str, version: int) -> dict[str, Any]:
    """Reads a JSON document that says what it is.

    Args:
        path: The file.
        form: Expected value of its ``format`` key.
        version: Expected value of its ``version`` key.

    Raises:
        RunFolderError: If the file is missing, cut short, something else, or of another version.
    """
    document = read_document(
        path,
        _START_AGAIN,
        missing=f"{path.parent} is no run folder: {path.name} is missing; expected a folder that "
        f"amc made with --out.",
    )
    if not isinstance(document, dict) or document.get("format") != form:
        raise RunFolderError(
            f"{path} is not what this program writes (expected format {form!r}); choose another "
            f"folder."
        )
    if document.get("version") != version:
        raise RunFolderError(
            f"{path} has version {shown(document.get('version'))}, this release reads version "
            f"{version}; use the release that wrote it, or start again in a new folder."
        )
    return document
