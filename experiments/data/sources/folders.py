"""Detection of a folder's format: parquet, Arrow, ``save_to_disk``, tar shards, class folders."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from amc_compress.data.sources.image_folders import stored_image_folder
from amc_compress.data.sources.shards import stored_shards
from amc_compress.data.sources.stored import (
    IMAGE_COLUMNS,
    SPLIT_NAMES,
    Columns,
    StoredData,
    check_splits,
    split_of_name,
)
from amc_compress.data.sources.tables import Table, stored_tables
from amc_env.errors import InputDataError
from amc_env.validation.json_text import parse_json
from amc_env.validation.sentences import counted

_HIDDEN = (".", "__")
_SAVED = "state.json"  # what datasets.Dataset.save_to_disk writes next to its files
_SAVED_SPLITS = "dataset_dict.json"
# Numbers that count the files of one split: "-00001-of-00004-0123456789abcdef", "_2", "0000".
_COUNT = r"\d+(?:-of-\d+(?:-[0-9a-f]{8,})?)?"
_LAST_NUMBER = re.compile(rf"(?:^|[-_. ]+){_COUNT}$")
_SPLIT_WORD = {
    split: re.compile(rf"(?<![a-z])(?:{'|'.join(words)})(?![a-z])(?:[-_. ]*{_COUNT}(?![a-z0-9]))?")
    for split, words in SPLIT_NAMES.items()
}
_WRITING = re.compile(r"-[0-9a-f]{16}(?=\.|$)")  # of one and the same shard, by older releases

_Files = dict[str, dict[str, list[Path]]]
"""Split -> configuration -> files."""


def read_folder(folder: Path, configuration: str, columns: Columns) -> StoredData:
    """Finds the splits of a folder; nothing is decoded and nothing written.

    Args:
        folder: Holds parquet or Arrow files, what ``save_to_disk`` wrote, tar shards, or class
            folders.
        configuration: Which data set of several in the folder; empty where there is one.
        columns: The columns that were asked for.

    Raises:
        InputDataError: If there is no data set, more than one, or one without a test split.
    """
    place = f"The folder {folder}"
    if (folder / _SAVED).is_file() or (folder / _SAVED_SPLITS).is_file():
        return _saved(folder, configuration, columns)
    files, shards = _known_files(folder)
    if not files:
        if columns != Columns() or configuration:
            raise InputDataError(
                f"{place} holds no tables: --image-column, --label-column and the name of a "
                f"configuration are for parquet and Arrow files."
            )
        if shards:
            return stored_shards(folder, shards)
        return stored_image_folder(folder)
    return _tables(folder, files, configuration, columns)


def _known_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Parquet files, or else Arrow files, none that are caches of ``datasets``; and tar files."""
    found: dict[str, list[Path]] = {".parquet": [], ".arrow": [], ".tar": []}
    for place, folders, names in os.walk(folder):  # a million images may lie here
        folders[:] = [name for name in folders if not name.startswith(_HIDDEN)]
        for name in names:
            suffix = os.path.splitext(name)[1]
            if suffix in found and not name.startswith(_HIDDEN):
                file = Path(place, name)
                found[suffix].extend([file] if file.is_file() else [])
    parquet, arrow, tar = (sorted(files) for files in found.values())
    return parquet or [f for f in arrow if not f.name.startswith(("cache-", "tmp"))], tar


def _tables(
    folder: Path, files: Sequence[Path], configuration: str, columns: Columns
) -> StoredData:
    notes: list[str] = []
    groups: _Files = defaultdict(lambda: defaultdict(list))
    unnamed = []
    for file in files:
        split, key = _split_and_configuration(file, folder)
        if split is None:
            unnamed.append(file)
        else:
            groups[split][key].append(file)
    if unnamed:
        found = ", ".join(file.name for file in unnamed[:5])
        if not groups:
            raise InputDataError(
                f"The folder {folder} has no train split: expected train*.parquet and "
                f"test*.parquet, found {found}."
            )
        notes.append(f"{counted(len(unnamed), 'file')} of no split left out: {found}")
    if configuration:
        groups = _chosen(folder, groups, configuration)
    splits = {}
    for split in (name for name in SPLIT_NAMES if name in groups):
        copy = _only_copy(folder, split, groups, columns, notes)
        splits[split] = stored_tables(copy, split, columns, notes)
    if len({tuple(keys) for keys in groups.values()}) > 1:
        notes += [f"the {split} split is {next(iter(keys))}" for split, keys in groups.items()]
    return check_splits(
        StoredData(splits, notes), f"The folder {folder}", [file.name for file in files]
    )


def _split_and_configuration(file: Path, folder: Path) -> tuple[str | None, str]:
    """The split of a file and its configuration, from the path.

    The file's own name decides first, then the folders it lies in, the nearest first.
    """
    *folders, _ = file.relative_to(folder).parts
    split, rest = split_of_name(file.stem), file.stem.lower()
    if split is not None:
        rest = _SPLIT_WORD[split].sub("", rest, count=1)
        while folders and split_of_name(folders[-1]) == split:
            folders.pop()
    else:
        while folders and split is None:
            split = split_of_name(folders.pop())
    rest = _LAST_NUMBER.sub("", rest).strip("-_. ")
    return split, "/".join([*folders, rest] if rest else folders)


def _chosen(folder: Path, groups: _Files, configuration: str) -> _Files:
    chosen = {
        split: {configuration: keys[configuration]}
        for split, keys in groups.items()
        if configuration in keys
    }
    if not chosen:
        raise InputDataError(
            f"The folder {folder} has no configuration {configuration!r}: expected one of "
            f"{', '.join(_configurations(groups))}."
        )
    return chosen


def _configurations(groups: Mapping[str, Mapping[str, object]]) -> list[str]:
    return sorted({key for keys in groups.values() for key in keys if key})


def _only_copy(
    folder: Path, split: str, groups: _Files, columns: Columns, notes: list[str]
) -> list[Path]:
    """The files of a split, each content once; several configurations are an error."""
    keys = groups[split]
    contents = {key: _without_copies(files, columns, notes) for key, files in keys.items()}
    (key, kept), *others = contents.items()
    if others:
        prints = {key: _rows_of(files, columns) for key, files in contents.items()}
        for other, files in others:
            if prints[other] != prints[key]:
                raise InputDataError(
                    f"The folder {folder} has several data sets with a {split} split: "
                    f"{_example(kept)} and {_example(files)} differ in more than a number; give "
                    f"one of them as {folder}:NAME with NAME one of "
                    f"{', '.join(_configurations(groups))}, or a folder that holds only one."
                )
            notes.append(
                f"the {split} split is stored twice ({_example(kept)}, {_example(files)}): one "
                f"copy is taken"
            )
    return kept


def _example(files: Sequence[Path]) -> str:
    return "/".join(files[0].parts[-2:])


def _without_copies(files: list[Path], columns: Columns, notes: list[str]) -> list[Path]:
    """Files of one split without those that repeat another.

    Raises:
        InputDataError: If a numbered part of the split is there in two versions.
    """
    sizes = Counter(file.stat().st_size for file in files)
    parts = Counter(_part(file) for file in files)
    kept: dict[object, Path] = {}
    versions: dict[Path, Path] = {}
    for file in files:
        # Files that were written alike and hold the same rows have one size.
        suspect = sizes[file.stat().st_size] > 1 or parts[_part(file)] > 1
        key: object = _rows_of([file], columns) if suspect else file
        if key in kept:
            notes.append(f"{file.name} holds what {kept[key].name} holds: left out")
            continue
        other = versions.setdefault(_part(file), file)
        if other is not file:
            raise InputDataError(
                f"{file} and {other.name} are two versions of one part of a split: remove the old "
                f"one."
            )
        kept[key] = file
    return list(kept.values())


def _part(file: Path) -> Path:
    return file.with_name(_WRITING.sub("", file.stem))


def _rows_of(files: Sequence[Path], columns: Columns) -> tuple[str, ...]:
    """A digest of every encoded image, sorted: equal however the rows are spread over files."""
    rows = []
    for file in files:
        table = Table(file)
        names = table.schema().names
        asked = (columns.image,) if columns.image else IMAGE_COLUMNS
        column = next((name for name in asked if name in names), None)
        if column is None:  # said in a sentence when the columns are looked up
            return (str(file),)
        for row in table.rows(column):
            data = row.get("bytes") if isinstance(row, dict) else row
            content = data if isinstance(data, bytes) else repr(row).encode()
            rows.append(hashlib.sha1(content, usedforsecurity=False).hexdigest())
    return tuple(sorted(rows))


def _saved(folder: Path, configuration: str, columns: Columns) -> StoredData:
    """What ``Dataset.save_to_disk`` or ``DatasetDict.save_to_disk`` wrote."""
    if configuration:
        raise InputDataError(
            f"The folder {folder} was written by save_to_disk and holds one data set: leave out "
            f":{configuration}."
        )
    notes: list[str] = []
    if not (folder / _SAVED_SPLITS).is_file():
        files = _saved_files(folder)
        return StoredData({"train": stored_tables(files, "train", columns, notes)}, notes)
    try:
        names = [str(name) for name in parse_json((folder / _SAVED_SPLITS).read_bytes())["splits"]]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / _SAVED_SPLITS) from error
    splits = {}
    for split, aliases in SPLIT_NAMES.items():
        found = [name for name in names if name.lower() in aliases]
        if len(found) > 1:
            raise InputDataError(
                f"The folder {folder} has several {split} splits: {', '.join(found)}; save one."
            )
        if found:
            files = _saved_files(folder / found[0])
            splits[split] = stored_tables(files, split, columns, notes)
    if left := [n for n in names if not any(n.lower() in words for words in SPLIT_NAMES.values())]:
        notes.append(f"splits of other names are left out: {', '.join(left)}")
    return check_splits(StoredData(splits, notes), f"The folder {folder}", names)


def _saved_files(folder: Path) -> list[Path]:
    """The files that the folder's ``state.json`` lists; caches lie next to them."""
    try:
        rows = parse_json((folder / _SAVED).read_bytes())["_data_files"]
        files = [folder / str(row["filename"]) for row in rows]
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / _SAVED) from error
    for file in files:
        if file.parent != folder or not file.is_file():
            raise InputDataError(
                f"The file {file} is missing, which {folder / _SAVED} lists: copy the folder whole."
            )
    if not files:
        raise InputDataError(f"The folder {folder} lists no files: expected images.")
    return files


def _damaged(file: Path) -> InputDataError:
    return InputDataError(
        f"The file {file} is missing or damaged: expected what save_to_disk writes; save the data "
        f"set again."
    )
