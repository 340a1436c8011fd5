"""Labels of any kind to class numbers 0, 1, 2, ... that mean the same in every split.

Whole numbers are taken as they are, and must name every class from 0 on. Strings are numbered in
alphabetical order, as torchvision's ``ImageFolder`` and the ``datasets`` library number them. Where
files name their classes, the names of the training split decide, whatever order others have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow
import torch
from pyarrow import types
from torch import Tensor

from amc_compress.data.sources.stored import LabelColumn
from amc_env.errors import InputDataError
from amc_env.validation.sentences import some

_REMEDY = (
    "number the classes from 0 without gaps, or store their names as strings, which are numbered "
    "in alphabetical order"
)
_BOOLS = ("False", "True")
_NUMBERS = "numbers"
_STRINGS = "strings"


@dataclass(frozen=True)
class Numbered:
    """Labels int64 (N,) of each split, the classes by number, and what was mapped, as sentences."""

    labels: dict[str, Tensor]
    class_names: tuple[str, ...]
    notes: list[str]


@dataclass(frozen=True)
class _Plain:
    """One column: whole numbers with or without names, or strings."""

    values: np.ndarray
    names: tuple[str, ...]
    place: str
    kind: str

    @property
    def is_text(self) -> bool:
        return self.kind == _STRINGS


def number_labels(splits: Mapping[str, Sequence[LabelColumn]]) -> Numbered:
    """Numbers the labels of all splits by the classes of the training split.

    Raises:
        InputDataError: If there are gaps, fractions, missing labels, or classes that the training
            split does not know.
    """
    plain = {name: [_plain(c, name) for c in columns] for name, columns in splits.items()}
    class_names, kind = _classes(plain["train"])
    notes: list[str] = []
    labels = {}
    for name, columns in plain.items():
        parts = [_numbers(column, class_names, kind, name, notes) for column in columns]
        labels[name] = torch.from_numpy(np.concatenate(parts))
        _check_range(labels[name], class_names, name, columns[0].place)
    kinds = {c.kind: None for columns in plain.values() for c in columns}
    mapped = [f"labels are {kind}: {_listed(class_names)}" for kind in kinds if kind != _NUMBERS]
    return Numbered(labels, class_names, mapped + notes + _absent(labels["train"], class_names))


def _plain(column: LabelColumn, split: str) -> _Plain:
    values = column.values
    if types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    head = f"The labels of the {split} split ({column.place}) must be"
    kind = values.type
    if values.null_count:
        raise InputDataError(
            f"{head} whole numbers without gaps, got {kind} with {values.null_count} empty: remove "
            f"those rows."
        )
    if types.is_string(kind) or types.is_large_string(kind):
        texts = np.array(values.to_pylist(), dtype=object)
        return _Plain(texts, column.names, column.place, _STRINGS)
    if types.is_boolean(kind):
        numbers = values.cast(pyarrow.int8()).to_numpy().astype(np.int64)
        return _Plain(numbers, column.names, column.place, "bools")
    if types.is_integer(kind):
        if types.is_uint64(kind) and len(values) and int(values.to_numpy().max()) > 2**62:
            raise InputDataError(f"{head} class numbers, got {values.to_numpy().max()}: {_REMEDY}.")
        return _Plain(values.to_numpy().astype(np.int64), column.names, column.place, _NUMBERS)
    if types.is_floating(kind) or types.is_decimal(kind):
        floats = values.cast(pyarrow.float64()).to_numpy()
        whole = np.isfinite(floats) & (np.rint(floats) == floats) & (abs(floats) < 2**53)
        if not whole.all():
            raise InputDataError(
                f"{head} whole numbers, got {floats[~whole][0]:g} ({kind}): {_REMEDY}."
            )
        return _Plain(floats.astype(np.int64), column.names, column.place, "floats")
    raise InputDataError(
        f"{head} one whole number or one string per image, got {kind}: choose another column with "
        f"--label-column."
    )


def _classes(train: Sequence[_Plain]) -> tuple[tuple[str, ...], str]:
    """The classes by number, and how they got their names.

    Those that the files name (``"names"``), or the strings that occur, or the numbers.
    """
    named = next((c.names for c in train if c.names), ())
    if named:
        return named, "names"
    if any(c.is_text for c in train):
        return tuple(sorted({text for c in train if c.is_text for text in c.values})), _STRINGS
    if all(c.kind == "bools" for c in train):
        return _BOOLS, _NUMBERS
    # Sorted, not counted: a label of 30,000,000 must cost nothing.
    found = np.unique(np.concatenate([c.values for c in train]))
    place = train[0].place
    if not len(found):
        raise InputDataError(f"The train split ({place}) has no rows: expected images.")
    count = len(found)
    if found[0] < 0:
        return tuple(map(str, range(count))), _NUMBERS  # the check of the range says which
    if found[0] != 0 or found[-1] != count - 1:
        expected = np.arange(count)
        first = int(expected[found != expected][0])
        head = f"The labels of the train split ({place}) must name every class from 0 on"
        if found[0] == 1 and found[-1] == count:
            raise InputDataError(f"{head}, got 1 to {count}: subtract 1, or {_REMEDY}.")
        raise InputDataError(
            f"{head}, got {count} classes up to {found[-1]} without a {first}: {_REMEDY}."
        )
    return tuple(map(str, range(count))), _NUMBERS


def _numbers(
    column: _Plain, class_names: tuple[str, ...], kind: str, split: str, notes: list[str]
) -> np.ndarray:
    """The class number of each label, int64 (N,)."""
    head = f"The labels of the {split} split ({column.place})"
    number_of = {name: number for number, name in enumerate(class_names)}
    if column.is_text:
        return np.array([_number(text, number_of, head) for text in column.values], np.int64)
    if not column.names and kind == _STRINGS:
        raise InputDataError(
            f"{head} are {column.kind}, those of the training split strings: store both alike."
        )
    if not column.names or column.names == class_names or kind == _NUMBERS:
        return column.values
    used = np.unique(column.values)
    if len(used) and (used[0] < 0 or used[-1] >= len(column.names)):
        raise InputDataError(
            f"{head} must lie in 0..{len(column.names) - 1} ({len(column.names)} classes), got "
            f"{used[0] if used[0] < 0 else used[-1]}: correct the labels or the list of classes."
        )
    if len(number_of) < len(class_names) or len(set(column.names)) < len(column.names):
        raise InputDataError(
            f"{head} name their classes in another order than the training split, and some names "
            f"are there twice: give every class a name of its own."
        )
    table = np.full(len(column.names), -1, np.int64)
    for old in used:
        table[old] = _number(column.names[old], number_of, head)
    if (table[used] != used).any():
        note = f"the {split} split lists its classes in another order: mapped by name"
        notes.extend([note] if note not in notes else [])
    mapped: np.ndarray = table[column.values]
    return mapped


def _number(name: str, number_of: Mapping[str, int], head: str) -> int:
    number = number_of.get(name)
    if number is None:
        raise InputDataError(
            f"{head} hold {name[:60]!r}, but the training split has only {_listed(number_of)}: "
            f"correct the name or add training images."
        )
    return number


def _check_range(labels: Tensor, class_names: tuple[str, ...], split: str, place: str) -> None:
    if not len(labels):
        raise InputDataError(f"The {split} split ({place}) has no rows: expected images.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= len(class_names):
        raise InputDataError(
            f"The labels of the {split} split ({place}) must lie in 0..{len(class_names) - 1} "
            f"({len(class_names)} classes), got {low if low < 0 else high}: correct the labels or "
            f"the list of classes{'; -1 stands for a hidden label' if low == -1 else ''}."
        )


def _absent(train: Tensor, class_names: tuple[str, ...]) -> list[str]:
    present = set(np.unique(train.numpy()).tolist())
    absent = [name for number, name in enumerate(class_names) if number not in present]
    if not absent:
        return []
    return [
        f"{len(absent)} of {len(class_names)} classes have no training images: {some(absent, 4)}"
    ]


def _listed(names: Sequence[str] | Mapping[str, int]) -> str:
    return f"{len(names)} classes, {some([f'{n} = {name!r}' for n, name in enumerate(names)], 4)}"
