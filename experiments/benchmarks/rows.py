"""Rows of a benchmark in a file, one JSON line each: what an interrupted run made is read back."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from amc_env import RunFolderError
from amc_env.validation.json_text import parse_json


def read_rows(path: Path | None) -> list[dict[str, Any]]:
    """Returns the rows made so far; a last line that was cut short is not one of them.

    Args:
        path: The file. None, or a file that does not exist, holds no rows.

    Raises:
        RunFolderError: If a line is damaged.
    """
    rows = []
    text = path.read_text() if path is not None and path.exists() else ""
    # Every complete line ends in a newline, so what follows the last one was cut short.
    for number, line in enumerate(text.split("\n")[:-1], start=1):
        try:
            row = parse_json(line)
            if not isinstance(row, dict):
                raise ValueError(f"{type(row).__name__}, not an object")
        except ValueError as error:
            raise RunFolderError(
                f"Expected a row in line {number} of {path}, got something else ({error}); remove "
                f"the line, or choose another --out."
            ) from error
        rows.append(row)
    return rows


def append_rows(path: Path | None, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes rows all at once, in place of a last line that was cut short; None writes nothing."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read() != b"\n":
                file.seek(0)
                file.truncate(file.read().rfind(b"\n") + 1)
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())


class KeptRows:
    """Rows of some settings in a file that may hold rows of other settings, which stay there.

    Args:
        path: The file; None keeps nothing.
        settings: All that a row depends on but what it says itself.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._settings = json.loads(json.dumps(dict(settings)))  # as they come back from the file
        found = ((row.pop("settings", None), row) for row in read_rows(path))
        self.rows = [row for theirs, row in found if theirs == self._settings]

    def add(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Appends rows, here and in the file."""
        new = [dict(row) for row in rows]
        append_rows(self._path, (row | {"settings": self._settings} for row in new))
        self.rows += new
