"""Data sets of the Hugging Face hub, through the optional ``datasets`` library."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow

from amc_compress.data.sources.stored import (
    SPLIT_NAMES,
    Columns,
    LabelColumn,
    Picture,
    StoredData,
    StoredSplit,
    check_splits,
)
from amc_env.errors import InputDataError
from amc_env.support.optional import needed
from amc_env.validation.sentences import first_line


def read_hub(name: str, columns: Columns) -> StoredData:
    """Finds the splits of the hub's data set ``owner/name`` or ``owner/name:configuration``.

    Raises:
        MissingDependencyError: The ``datasets`` library is not installed.
        InputDataError: There is no such data set, or it is not image classification.
    """
    datasets = needed(
        "datasets",
        f"There is no folder {name!r}, and data sets of the Hugging Face hub need the "
        'datasets library: pip install "amc-compress[hub]".',
    )
    path, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(path, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputDataError(
            f"The data set {name!r} cannot be loaded from the Hugging Face hub: "
            f"{first_line(error)}; check the name and the network, or give a folder of parquet "
            f"files."
        ) from error
    data = StoredData({})
    for split, aliases in SPLIT_NAMES.items():
        found = next((alias for alias in aliases if alias in loaded), None)
        if found is not None:
            data.splits[split] = _stored(loaded[found], split, name, datasets, columns)
    return check_splits(data, f"The data set {name!r}", list(loaded))


def _stored(data: Any, split: str, name: str, datasets: Any, columns: Columns) -> StoredSplit:
    place = f"The data set {name!r}"
    image = columns.find("image", data.column_names, place)
    label = columns.find("label", data.column_names, place)
    try:
        encoded = data.cast_column(image, datasets.Image(decode=False))
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise InputDataError(
            f"The column {image!r} of the data set {name!r} holds no images "
            f"({first_line(error, 100)}): choose another with --image-column."
        ) from error
    names = getattr(data.features[label], "names", None) or ()

    rows = _HubRows(encoded, image, f"The {split} split of {name}")

    def pictures() -> Iterator[Picture]:
        for row in encoded:
            yield rows.picture(row)

    try:
        values = pyarrow.chunked_array([pyarrow.array(list(data[label][:]))])
    except pyarrow.ArrowException as error:
        raise InputDataError(
            f"The labels of the {split} split ({name}) must be of one kind, got several "
            f"({str(error)[:80]}): choose another column with --label-column."
        ) from error
    column = LabelColumn(values, tuple(names), name)
    return StoredSplit(split, len(data), pictures, [column], encoded=rows)


@dataclass(frozen=True)
class _HubRows:
    """Images of a data set of the library, which maps its files into memory."""

    data: Any
    column: str
    place: str

    def __getitem__(self, index: int) -> Picture:
        return self.picture(self.data[index])

    def picture(self, row: Mapping[str, Any]) -> Picture:
        entry = row[self.column]
        if entry is None or (entry["bytes"] is None and entry["path"] is None):
            raise InputDataError(f"{self.place} has a row without an image: remove it.")
        return entry["bytes"] if entry["bytes"] is not None else Path(entry["path"])
