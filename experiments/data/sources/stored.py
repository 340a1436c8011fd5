"""Data sets before decoding: splits of encoded images with their labels."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Protocol

import pyarrow

from amc_env.errors import InputDataError

SPLIT_NAMES: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
}
"""The words by which file and folder names tell a split: those of the Hugging Face hub."""

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")

Picture = bytes | Path
"""An encoded image, or the file that holds it."""


@dataclass(frozen=True)
class Columns:
    """The columns of a table; None takes the first of the usual names that is there."""

    image: str | None = None
    label: str | None = None

    def find(self, what: Literal["image", "label"], names: Sequence[str], place: str) -> str:
        """Returns the column with the images, or the labels.

        Args:
            what: Which of them.
            names: The columns that are there.
            place: Where, for the message.

        Raises:
            InputDataError: If it is not there.
        """
        usual = IMAGE_COLUMNS if what == "image" else LABEL_COLUMNS
        asked = getattr(self, what)
        wanted = usual if asked is None else (asked,)
        for name in wanted:
            if name in names:
                return name
        raise InputDataError(
            f"{place} has no {what} column: expected {' or '.join(wanted)}, got the columns "
            f"{', '.join(names)}; name one with --{what}-column."
        )


@dataclass(frozen=True)
class LabelColumn:
    """Labels as they are stored.

    Args:
        values: Whole numbers, bools, strings, ...
        names: The classes by number, where the file knows them.
        place: Where they come from, for messages.
    """

    values: pyarrow.ChunkedArray
    names: tuple[str, ...]
    place: str


class Lookup(Protocol):
    """Encoded images by their number; it pickles, for other processes."""

    def __getitem__(self, index: int, /) -> Picture: ...


@dataclass(frozen=True)
class StoredSplit:
    """One split as it lies on disk.

    Args:
        name: ``"train"``, ``"validation"`` or ``"test"``.
        count: How many images there are.
        images: Gives all of them in order, as often as it is called.
        labels: Those of the images, in the same order, one column per file.
        files: What the images are read from: the cache is keyed by them; none is never cached.
        encoded: The images by their number, where that costs no more than the image itself.
    """

    name: str
    count: int
    images: Callable[[], Iterator[Picture]]
    labels: Sequence[LabelColumn]
    files: Sequence[Path] = ()
    encoded: Lookup | None = None


@dataclass
class StoredData:
    """All splits of a data set; ``"train"`` alone where nothing names a split."""

    splits: dict[str, StoredSplit]
    notes: list[str] = field(default_factory=list)


def split_of_name(name: str) -> str | None:
    """Returns the split that a file or folder name tells, e.g. "train" for "train-00000-of-00002".

    One of the words must stand for itself, between digits, dots, dashes or underscores.
    """
    words = re.split(r"[^a-z]+", name.lower())
    for split, aliases in SPLIT_NAMES.items():
        if any(alias in words for alias in aliases):
            return split
    return None


def check_splits(data: StoredData, place: str, found: Sequence[str]) -> StoredData:
    """Returns data with a test split: their own, or else their validation split.

    Args:
        data: What was found.
        place: Where, for messages.
        found: Names of what is there.

    Raises:
        InputDataError: If there is nothing to train or to test on.
    """
    splits = data.splits
    if "train" in splits and "test" not in splits and "validation" in splits:
        splits["test"] = splits.pop("validation")
        data.notes.append(
            "no test split: the validation split is the test set, and validation images are cut "
            "from the training images"
        )
    for name in ("train", "test"):
        if name not in splits:
            raise InputDataError(
                f"{place} has no {name} split: expected {name}*.parquet or a folder {name}/ next "
                f"to the other, found {', '.join(found[:5])}."
            )
    return data
