"""Data sets of the Hugging Face hub, through the optional ``datasets`` library."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import torch
from PIL import Image

from amc_env.errors import InputDataError, MissingDependencyError
from experiments.data.parquet import (
    IMAGE_COLUMNS,
    LABEL_COLUMNS,
    SPLIT_NAMES,
    RawSplit,
    decode,
)


def read_hub(name: str, progress: bool | None = None) -> dict[str, RawSplit]:
    """Read the splits of the hub's data set ``owner/name`` or ``owner/name:configuration``.

    Raises:
        MissingDependencyError: The ``datasets`` library is not installed.
        InputDataError: There is no such data set, or it is not image classification.
    """
    try:
        import datasets
    except ImportError as error:
        raise MissingDependencyError(
            f"There is no folder {name!r}, and data sets of the Hugging Face hub need the "
            'datasets library: pip install "amc-compress[hub]".'
        ) from error
    path, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(path, configuration or None)
    except (OSError, ValueError, RuntimeError) as error:
        reason = (str(error).splitlines() or ["no reason given"])[0][:200]
        raise InputDataError(
            f"The data set {name!r} cannot be loaded from the Hugging Face hub: {reason}; check "
            "the name and the network, or give a folder of parquet files."
        ) from error
    splits = {}
    for split, aliases in SPLIT_NAMES.items():
        found = next((alias for alias in aliases if alias in loaded), None)
        if found is not None:
            splits[split] = _convert(loaded[found], split, name, datasets, progress)
    for split in ("train", "test"):
        if split not in splits:
            raise InputDataError(
                f"The data set {name!r} has no {split} split: expected train and test, got "
                f"{', '.join(loaded)}."
            )
    return splits


def _convert(data: Any, split: str, name: str, datasets: Any, progress: bool | None) -> RawSplit:
    image = next((c for c in IMAGE_COLUMNS if c in data.column_names), None)
    label = next((c for c in LABEL_COLUMNS if c in data.column_names), None)
    if image is None or label is None:
        raise InputDataError(
            f"The data set {name!r} is not image classification: expected the columns "
            f"{'/'.join(IMAGE_COLUMNS)} and {'/'.join(LABEL_COLUMNS)}, got "
            f"{', '.join(data.column_names)}."
        )
    encoded = data.cast_column(image, datasets.Image(decode=False))
    pixels = decode(_bytes(encoded, image), len(data), split, progress)
    names = getattr(data.features[label], "names", None) or ()
    return RawSplit(pixels, torch.tensor(data[label][:], dtype=torch.int64), tuple(names))


def _bytes(data: Any, column: str) -> Iterator[bytes]:
    for row in data:
        entry = row[column]
        if entry["bytes"] is not None:
            yield entry["bytes"]
        else:
            buffer = io.BytesIO()
            with Image.open(entry["path"]) as image:
                image.save(buffer, "PNG")
            yield buffer.getvalue()
