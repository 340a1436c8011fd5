"""Atomic file writes and locks: a file is the old one or the new one, never half of each."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from amc_env.errors import RunFolderError
from amc_env.validation.checks import shown
from amc_env.validation.json_text import parse_json
from amc_env.validation.shapes import check_shape

Parsed = TypeVar("Parsed")

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


def write_atomic(path: Path, content: bytes | str, *, overwrite: bool = True) -> None:
    """Writes a file so that a reader, or a crash at any moment, sees all of it or none of it.

    Args:
        path: The file.
        content: What it shall hold.
        overwrite: Whether to take the place of a file that is there; else it stays as it is.

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
        if overwrite:
            replace(temporary, path)
        else:
            with contextlib.suppress(FileExistsError):
                os.link(temporary, path)  # of several processes one succeeds
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink()


def replace(temporary: Path, path: Path) -> None:
    """Renames over ``path`` and makes the rename last through a power cut."""
    os.replace(temporary, path)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synchronised
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def save_bytes(path: Path, data: bytes) -> None:
    """Writes a file as :func:`write_atomic` does, and makes the folder that it lies in.

    Raises:
        RunFolderError: If it cannot be written, with what to do; an old file stays.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, data)
    except OSError as error:
        raise RunFolderError(
            f"Cannot write {path} ({error.strerror or error}): free some space or choose another "
            f"folder, then resume; what was saved before is untouched."
        ) from error


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
    path: Path,
    remedy: str = _START_AGAIN,
    *,
    missing: str | None = None,
    shape: Any = Any,
    renewed: Callable[[Any], Any] | None = None,
) -> Any:
    """Reads a JSON file of a run; every way in which it can be damaged is one sentence.

    Args:
        path: The file.
        remedy: What to do about a damaged file, as the end of a sentence.
        missing: The sentence to say if it is not there; ``remedy`` if not given.
        shape: What it must hold, as :mod:`amc_env.validation.shapes` says it.
        renewed: Returns a document as it is written now, of one that an older release wrote; may
            raise ValueError.

    Raises:
        RunFolderError: If it is missing, cannot be read, or holds something else.
    """
    content = read_content(path, remedy, missing)
    try:
        document = parse_json(content)
        if renewed is not None:
            document = renewed(document)
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


@contextlib.contextmanager
def only_one(path: Path, lock: Path | None = None) -> Iterator[None]:
    """Lets one process at a time work on a file or folder, while the block lasts.

    Args:
        path: What is worked on.
        lock: The file that is locked; one next to ``path`` if not given.

    Raises:
        RunFolderError: If another process is at it.
    """
    lock = lock or path.with_name(f".{path.name}.lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:  # it may be a link: never emptied
        try:
            _lock(file.fileno(), wait=False)
        except OSError as error:
            raise RunFolderError(
                f"Another process is working in {path}; wait for it, or choose another place."
            ) from error
        yield


def _lock(descriptor: int, *, wait: bool) -> None:
    """Locks an open file until it is closed; without ``wait``, OSError where it is locked."""
    with contextlib.suppress(ImportError):  # Windows has no advisory locks: the user takes care
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@dataclass(frozen=True)
class JsonLines:
    """A file of JSON documents, one a line, to which rows are added as they come.

    A last line without its newline was cut short: its process was killed, or the disk was full. It
    is not read, and the next added row replaces it. Several processes may add rows.

    Args:
        path: The file.
        form: If given, the first line is ``{"format": form, "version": version, ...}``.
        version: Of the form.
        content: What the file holds, for messages.
        remedy: What to do about a damaged line, as the end of a sentence.
        elsewhere: What to choose in place of a file that is something else, for messages.
    """

    path: Path
    form: str | None = None
    version: int = 1
    content: str = "rows"
    remedy: str = "restore the file"
    elsewhere: str = "--out"

    @property
    def is_cut_short(self) -> bool:
        """Whether there is a last line without its newline."""
        with self.path.open("rb") as file:
            return _ends_within_a_line(file)

    def head(self, parse: Callable[[Any], Parsed]) -> Parsed:
        """Returns what the first line says.

        Args:
            parse: Makes something of it; may raise what a ``dict`` and the constructor of a
                dataclass raise.

        Raises:
            RunFolderError: If the file is something else or of another version, or the line is
                damaged.
        """
        with self.path.open("rb") as file:
            line = file.readline()
        try:
            row = parse_json(line if line.endswith(b"\n") else b"")
            version = row["version"] if row["format"] == self.form else None
        except (ValueError, LookupError, TypeError):
            version = None
        if version is None:
            raise RunFolderError(
                f"Expected {self.content} in {self.path}, got something else; choose another "
                f"{self.elsewhere}."
            )
        if version != self.version:
            raise RunFolderError(
                f"Expected {self.content} of version {self.version} in {self.path}, got version "
                f"{version}; read them with the release that wrote them, or choose another "
                f"{self.elsewhere}."
            )
        remedy = f"restore the file, or choose another {self.elsewhere}"
        return self._parsed("The first line", line, parse, remedy)

    def rows(self, parse: Callable[[Any], Parsed]) -> list[Parsed]:
        """Returns all rows; none if there is no file.

        Args:
            parse: As in :meth:`head`; called line by line.

        Raises:
            RunFolderError: If the file cannot be read, or a line is damaged.
        """
        if not self.path.exists():
            return []
        lines = read_content(self.path, self.remedy).split(b"\n")[:-1]
        first = 0 if self.form is None else 1
        return [
            self._parsed(f"Line {number}", line, parse, self.remedy)
            for number, line in enumerate(lines[first:], start=first + 1)
        ]

    def _parsed(
        self, which: str, line: bytes, parse: Callable[[Any], Parsed], remedy: str
    ) -> Parsed:
        try:
            return parse(parse_json(line))
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            text = (
                str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
            )
            raise RunFolderError(
                f"{which} of {self.path} is damaged ({text.rstrip('.')}); {remedy}."
            ) from error

    def write(
        self, rows: Iterable[Mapping[str, Any]], *, overwrite: bool = True, **facts: Any
    ) -> None:
        """Writes the file anew, and makes the folder that it lies in.

        Args:
            rows: All of them.
            overwrite: Whether to take the place of a file that is there; else it stays as it is.
            facts: What the first line says besides format and version.

        Raises:
            OSError: If it cannot be written; the file is then what it was before.
        """
        head = {"format": self.form, "version": self.version, **facts}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = _lines(rows if self.form is None else [head, *rows])
        write_atomic(self.path, content, overwrite=overwrite)

    def mend(self) -> None:
        """Removes a last line that was cut short, if there is one."""
        if self.path.exists():
            self.append()

    def append(self, *rows: Mapping[str, Any]) -> None:
        """Adds rows by one write, in place of a last line that was cut short.

        Raises:
            OSError: If they cannot be written, for example because the disk is full.
        """
        data = _lines(rows).encode()
        with self.path.open("ab+", buffering=0) as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                _lock(file.fileno(), wait=True)
            if _ends_within_a_line(file):
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
            if os.write(file.fileno(), data) < len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(file.fileno())


def _lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _ends_within_a_line(file: BinaryIO | io.FileIO) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read() != b"\n"
