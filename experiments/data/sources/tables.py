"""Tables of images and labels: parquet files and Arrow files, with the Hugging Face schema."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet

from amc_compress.data.sources.stored import (
    LABEL_COLUMNS,
    Columns,
    LabelColumn,
    Picture,
    StoredSplit,
)
from amc_env.errors import InputDataError
from amc_env.validation.json_text import parse_json
from amc_env.validation.sentences import first_line

_ROWS = 256
"""Images that are in memory encoded at one time; a whole column would double what is needed."""


@dataclass(frozen=True)
class Table:
    """One file of a split; opened anew for each pass, so that many cost no open files.

    Raises:
        InputDataError: From every method, if the file is damaged.
    """

    path: Path

    @property
    def is_parquet(self) -> bool:
        """Whether the file is parquet; Arrow otherwise."""
        return self.path.suffix == ".parquet"

    def schema(self) -> pyarrow.Schema:
        """Returns the columns with their types and metadata."""
        with self._reading():
            if self.is_parquet:
                return pyarrow.parquet.read_schema(self.path)
            with self._arrow() as source:
                return _stream(source).schema

    def column(self, name: str) -> pyarrow.ChunkedArray:
        """Returns a column whole: for labels."""
        with self._reading():
            if self.is_parquet:
                table = pyarrow.parquet.read_table(self.path, columns=[name], partitioning=None)
                return table.column(name)
            with self._arrow() as source:
                return _stream(source).read_all().column(name)

    def rows(self, name: str) -> Iterator[Any]:
        """Yields the values of a column as Python objects, a few in memory at a time."""
        with self._reading():
            if self.is_parquet:
                with pyarrow.parquet.ParquetFile(self.path) as file:
                    for batch in file.iter_batches(_ROWS, columns=[name], use_threads=False):
                        yield from batch.column(0).to_pylist()
                return
            with self._arrow() as source:
                for chunk in _stream(source).read_all().column(name).chunks:  # mapped, not read
                    for start in range(0, len(chunk), _ROWS):
                        yield from chunk.slice(start, _ROWS).to_pylist()

    def _arrow(self) -> Any:
        return pyarrow.memory_map(str(self.path))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (pyarrow.ArrowException, OSError) as error:
            kind = "parquet" if self.is_parquet else "Arrow"
            raise InputDataError(
                f"The file {self.path} cannot be read as {kind} ({first_line(error, 120)}): it is "
                "truncated or of another format; copy or download it again."
            ) from error


def _stream(source: Any) -> Any:
    """Streams are what ``save_to_disk`` and the hub's cache hold; Feather files are the other."""
    try:
        return pyarrow.ipc.open_stream(source)
    except pyarrow.ArrowInvalid:
        source.seek(0)
        return pyarrow.ipc.open_file(source)


def stored_tables(
    files: Sequence[Path], name: str, columns: Columns, notes: list[str]
) -> StoredSplit:
    """Returns the split that these files hold together, in this order.

    Args:
        files: Parquet or Arrow files.
        name: Of the split.
        columns: What was asked for.
        notes: Which column was taken, where there is a choice, is added here.

    Raises:
        InputDataError: If a file is damaged or has no such columns.
    """
    images: list[tuple[Table, str]] = []
    labels = []
    for file in files:
        table = Table(file)
        schema = table.schema()
        place = f"The file {file}"
        images.append((table, columns.find("image", schema.names, place)))
        label = columns.find("label", schema.names, place)
        others = [c for c in LABEL_COLUMNS if c in schema.names and c != label]
        if columns.label is None and others:
            note = f"labels are column {label!r}; --label-column takes {' or '.join(others)}"
            notes.extend([note] if note not in notes else [])
        names = _class_names(schema, label)
        labels.append(LabelColumn(table.column(label), names, str(file)))
    count = sum(len(column.values) for column in labels)

    def pictures() -> Iterator[Picture]:
        for table, column in images:
            for index, row in enumerate(table.rows(column)):
                yield _encoded(row, index, table.path)

    mapped = all(not table.is_parquet for table, _ in images)
    encoded = ArrowRows([(table.path, column) for table, column in images]) if mapped else None
    return StoredSplit(name, count, pictures, labels, tuple(files), encoded)


class ArrowRows:
    """Images in columns of Arrow files, which are mapped into memory: read when asked for.

    Args:
        parts: Files and their columns, in the order of the rows.
    """

    def __init__(self, parts: Sequence[tuple[Path, str]]) -> None:
        self._parts = tuple(parts)
        self._open: tuple[list[tuple[pyarrow.Array, Path]], np.ndarray] | None = None

    def __getitem__(self, index: int) -> Picture:
        if self._open is None:
            self._open = self._mapped()
        chunks, ends = self._open
        place = int(np.searchsorted(ends, index, side="right"))
        chunk, path = chunks[place]
        offset = index - (int(ends[place - 1]) if place else 0)
        return _encoded(chunk[offset].as_py(), index, path)

    def _mapped(self) -> tuple[list[tuple[pyarrow.Array, Path]], np.ndarray]:
        """The chunks of all columns, and the number of rows up to the end of each."""
        chunks = [
            (chunk, path)
            for path, column in self._parts
            for chunk in Table(path).column(column).chunks
            if len(chunk)
        ]
        return chunks, np.cumsum([len(chunk) for chunk, _ in chunks])

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what is mapped: another process maps it again."""
        return vars(self) | {"_open": None}


def _encoded(row: object, index: int, file: Path) -> bytes:
    data = row.get("bytes") if isinstance(row, dict) else row
    if not isinstance(data, bytes):
        raise InputDataError(
            f"Image {index} of {file} has no bytes: expected the encoded file in the column's "
            "field 'bytes', not a path to it or numbers; embed the images."
        )
    return data


def _class_names(schema: pyarrow.Schema, label: str) -> tuple[str, ...]:
    """The names in the schema's "huggingface" entry; empty where there are none."""
    try:
        info = parse_json((schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][label]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()
