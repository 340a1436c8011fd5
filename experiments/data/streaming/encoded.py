"""Encoded images by their number, whatever they are stored in."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.ipc
from tqdm.auto import tqdm

from amc_compress.data.cache import cache_file
from amc_compress.data.sources.stored import Lookup, Picture, StoredSplit
from amc_compress.data.sources.tables import ArrowRows
from amc_env.errors import InputDataError

_COLUMN = "image"
_ROWS = 64  # in memory at one time


def lookup_of(split: StoredSplit, progress: bool | None) -> Lookup:
    """Returns the images of a split by their number.

    Parquet files are packed many rows together, so that one image costs a hundred; they are copied
    once to an Arrow file in the cache, as the ``datasets`` library does.

    Args:
        split: What is stored.
        progress: Show a progress bar; None shows it on a terminal.

    Raises:
        InputDataError: If a copy is needed and cannot be written.
    """
    if split.encoded is not None:
        return split.encoded
    copy = cache_file(split.files, ["encoded"])
    if copy is None:
        raise InputDataError(
            f"The {split.name} split is larger than --memory and stored as parquet, of which a "
            f"copy is needed in the cache, and AMC_CACHE_DIR is empty: set it to a folder, give "
            f"more --memory, or store the data as class folders, Arrow files or tar shards."
        )
    copy = copy.with_suffix(".arrow")
    if not copy.is_file():
        _copy(split, copy, progress)
    return ArrowRows([(copy, _COLUMN)])


def _copy(split: StoredSplit, path: Path, progress: bool | None) -> None:
    schema = pyarrow.schema([(_COLUMN, pyarrow.binary())])
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            pyarrow.OSFile(str(temporary), "wb") as sink,
            pyarrow.ipc.new_stream(sink, schema) as writer,
        ):
            for rows in _some(split, progress):
                writer.write_batch(
                    pyarrow.record_batch([pyarrow.array(rows, pyarrow.binary())], schema)
                )
        os.replace(temporary, path)
    except OSError as error:
        raise InputDataError(
            f"The {split.name} split is larger than --memory and stored as parquet, and its copy "
            f"{path} cannot be written ({error.strerror}): free some space, set AMC_CACHE_DIR to "
            f"another folder, or give more --memory."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def _some(split: StoredSplit, progress: bool | None) -> Iterator[list[bytes]]:
    """All images, a few at a time."""
    disable = None if progress is None else not progress
    bar = tqdm(
        split.images(), f"copy {split.name}", total=split.count, unit="image", disable=disable,
        leave=False,
    )  # fmt: skip
    rows: list[bytes] = []
    for picture in bar:
        rows.append(_bytes_of(picture))
        if len(rows) == _ROWS:
            yield rows
            rows = []
    if rows:
        yield rows


def _bytes_of(picture: Picture) -> bytes:
    return picture if isinstance(picture, bytes) else picture.read_bytes()
