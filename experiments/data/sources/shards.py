"""Tar shards as the ``webdataset`` package writes them: ``train-000000.tar`` and its like.

They are indexed once, by the standard library, and each image is read from its place. The package
itself reads shards from end to end: its batches depend on the number of its processes, and an
epoch cannot go on in its middle.
"""

from __future__ import annotations

import tarfile
from array import array
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow

from amc_compress.data.sources.image_folders import EXTENSIONS
from amc_compress.data.sources.stored import (
    LabelColumn,
    Picture,
    StoredData,
    StoredSplit,
    check_splits,
    split_of_name,
)
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line, some

_LABEL = ".cls"


class ShardMembers:
    """Images at their places in tar files.

    Args:
        shards: The files.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        self._shards = tuple(shards)
        self._places = array("q")  # (shard, offset, bytes) of each image, one after the other

    def add(self, shard: int, offset: int, size: int) -> None:
        """Adds an image at the end."""
        self._places.extend((shard, offset, size))

    def __len__(self) -> int:
        return len(self._places) // 3

    def __getitem__(self, index: int) -> Picture:
        shard, offset, size = self._places[3 * index : 3 * index + 3]
        try:
            with self._shards[shard].open("rb") as file:
                file.seek(offset)
                return file.read(size)
        except OSError as error:
            raise _damaged(self._shards[shard], error) from error


def stored_shards(folder: Path, files: Sequence[Path]) -> StoredData:
    """Finds the splits of a folder of tar shards, and where their images are.

    Args:
        folder: Of the data set.
        files: Its shards.

    Raises:
        InputDataError: If a shard is damaged or none of images with classes, or a split is missing.
    """
    groups: dict[str, list[Path]] = defaultdict(list)
    unnamed = []
    for file in sorted(files):
        split = split_of_name(file.stem) or split_of_name(file.parent.name)
        if split is None:
            unnamed.append(file.name)
        else:
            groups[split].append(file)
    if unnamed:
        raise InputDataError(
            f"The folder {folder} has tar files of no split: expected names with train, validation "
            f"or test, e.g. train-000000.tar, got {some(unnamed, 4)}; rename them."
        )
    data = StoredData({name: _split(name, shards) for name, shards in groups.items()})
    return check_splits(data, f"The folder {folder}", [file.name for file in files])


def _split(name: str, shards: Sequence[Path]) -> StoredSplit:
    members = ShardMembers(shards)
    labels: list[str] = []
    for number, shard in enumerate(shards):
        for offset, size, label in _samples(shard):
            members.add(number, offset, size)
            labels.append(label)
    place = str(shards[0].parent)
    if all(label.isdecimal() for label in labels):
        values = pyarrow.array(np.array([int(label) for label in labels], np.int64))
    else:
        values = pyarrow.array(labels, pyarrow.string())

    def pictures() -> Iterator[Picture]:
        for index in range(len(members)):
            yield members[index]

    column = LabelColumn(pyarrow.chunked_array([values]), (), place)
    return StoredSplit(name, len(members), pictures, [column], tuple(shards), members)


def _samples(shard: Path) -> Iterator[tuple[int, int, str]]:
    """Yields (offset, bytes, class) of the images of a shard; neighbours of one name are a sample.

    Raises:
        InputDataError: If it is damaged, or an image has no class.
    """
    key, image, label = "", None, None
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, dot, extension = name.partition(".")
                if (own := f"{folder}/{stem}") != key:
                    if image is not None:
                        raise _without_class(shard, key)
                    key, image, label = own, None, None
                if f"{dot}{extension}".lower().endswith(EXTENSIONS):
                    image = member.offset_data, member.size
                elif dot + extension == _LABEL and (file := tar.extractfile(member)) is not None:
                    label = file.read().decode().strip()
                if image is not None and label is not None:
                    yield *image, label
                    image, label = None, None
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise _damaged(shard, error) from error
    if image is not None:
        raise _without_class(shard, key)


def _without_class(shard: Path, key: str) -> InputDataError:
    return InputDataError(
        f"The image {key.strip('/')} of {shard} has no class: expected a member "
        f"{key.strip('/')}{_LABEL} next to it, with a number or a name, as webdataset writes it."
    )


def _damaged(shard: Path, error: Exception) -> InputDataError:
    return InputDataError(
        f"The file {shard} cannot be read as tar ({first_line(error, 120)}): it is truncated, "
        f"compressed or of another format; copy it again, or unpack it."
    )
