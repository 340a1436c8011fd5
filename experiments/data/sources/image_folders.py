"""Folders with one folder of images per class, as torchvision's ``ImageFolder`` takes them."""

from __future__ import annotations

import os
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow

from amc_compress.data.sources.stored import (
    LabelColumn,
    Picture,
    StoredData,
    StoredSplit,
    check_splits,
    split_of_name,
)
from amc_env.errors import InputDataError
from amc_env.validation.sentences import counted

EXTENSIONS = (
    ".jpg", ".jpeg", ".png", ".ppm", ".pgm", ".pnm", ".bmp", ".tif", ".tiff", ".webp", ".gif",
    ".jp2", ".pfm",
)  # fmt: skip


def stored_image_folder(folder: Path) -> StoredData:
    """Finds class folders, below ``train/``, ``val/`` and ``test/`` or directly in the folder.

    A folder that has none of these three is one split, ``"train"``.

    Raises:
        InputDataError: If there are no images, or they do not lie in a folder for each class.
    """
    inside = _folders(folder)
    splits = {sub: split_of_name(sub.name) for sub in inside if _folders(sub)}
    named = {sub: split for sub, split in splits.items() if split is not None}
    notes: list[str] = []
    if inside and all(split_of_name(sub.name) for sub in inside) and not named:
        raise InputDataError(
            f"The images of {folder} lie directly in {', '.join(sub.name for sub in inside[:3])}: "
            f"expected a folder for each class below, e.g. {inside[0].name}/cat/1.jpg."
        )
    if not named:
        return StoredData({"train": _split(folder, inside, "train", notes)}, notes)
    if left := [sub.name for sub in inside if sub not in named]:
        notes.append(f"folders of no split are left out: {', '.join(left[:5])}")
    found: dict[str, Path] = {}
    for sub, split in named.items():
        if split in found:
            raise InputDataError(
                f"The folder {folder} has several {split} splits: {found[split].name} and "
                f"{sub.name}; keep one."
            )
        found[split] = sub
    data = {split: _split(sub, _folders(sub), split, notes) for split, sub in found.items()}
    return check_splits(
        StoredData(data, notes), f"The folder {folder}", [sub.name for sub in inside]
    )


def _folders(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        names = sorted(e.name for e in entries if e.is_dir() and not e.name.startswith((".", "__")))
    return [folder / name for name in names]


def _split(folder: Path, classes: Sequence[Path], split: str, notes: list[str]) -> StoredSplit:
    files = Paths()
    labels: list[str] = []
    left = 0
    for sub in classes:
        images, others = _images(sub)
        if not images and split == "train":
            raise InputDataError(
                f"The class folder {sub} holds no images: expected files such as .jpg or .png; "
                f"remove it or fill it."
            )
        files.extend(images)
        labels += [sub.name] * len(images)
        left += others
    if not files or (split == "train" and len(classes) < 2):
        raise InputDataError(
            f"The folder {folder} holds no parquet files and no class folders: expected "
            f"train*.parquet and test*.parquet, what save_to_disk writes, or two or more folders "
            f"of images, one for each class, with or without train/, val/ and test/ above them."
        )
    if left:
        notes.append(f"{counted(left, 'file')} in {split} left out: no images")

    def pictures() -> Iterator[Picture]:
        yield from files

    column = LabelColumn(pyarrow.chunked_array([labels], pyarrow.string()), (), str(folder))
    return StoredSplit(split, len(files), pictures, [column], files, files)


class Paths(Sequence[Path]):
    """Paths of files, kept as bytes: a million objects would take half a gigabyte."""

    def __init__(self) -> None:
        self._text = bytearray()
        self._ends = array("q", [0])

    def extend(self, paths: Iterable[str]) -> None:
        """Adds paths at the end."""
        for path in paths:
            self._text += os.fsencode(path)
            self._ends.append(len(self._text))

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return Path(os.fsdecode(bytes(self._text[self._ends[place] : self._ends[place + 1]])))


def _images(folder: Path) -> tuple[list[str], int]:
    """The images of a class in the order of ``ImageFolder``, and how many other files there are."""
    images = []
    others = 0
    for place, _, names in sorted(os.walk(folder, followlinks=True)):
        for name in sorted(n for n in names if not n.startswith(".")):
            if name.lower().endswith(EXTENSIONS):
                images.append(os.path.join(place, name))
            else:
                others += 1
    return images, others
