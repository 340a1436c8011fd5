"""Image-classification data in parquet files with the Hugging Face schema."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import safetensors.torch
import torch
from PIL import Image, UnidentifiedImageError
from safetensors import SafetensorError
from torch import Tensor
from tqdm import tqdm

from amc_env.errors import InputDataError

IMAGE_COLUMNS = ("img", "image")
LABEL_COLUMNS = ("label", "labels", "fine_label")
SPLIT_NAMES = {
    "train": ("train",),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test",),
}
_CACHE_LIMIT = 2 * 1024**3  # bytes of pixels above which decoding again is the smaller nuisance


@dataclass(frozen=True)
class RawSplit:
    """Pixels uint8 (N, C, H, W), labels int64 (N,), and the names of the classes where known."""

    pixels: Tensor
    labels: Tensor
    class_names: tuple[str, ...] = ()


def read_folder(folder: Path, progress: bool | None = None) -> dict[str, RawSplit]:
    """Read the splits ("train", "test", perhaps "validation") of a folder of parquet files.

    Args:
        folder: Holds ``train*.parquet`` and ``test*.parquet``, or folders ``train/`` and ``test/``,
            at any depth. Nothing is written to it.
        progress: Show a progress bar while decoding; None shows it on a terminal.

    Raises:
        InputDataError: No such files, missing splits or columns, or images that cannot be used.
    """
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        raise InputDataError(
            f"The folder {folder} holds no parquet files: expected train*.parquet and "
            "test*.parquet."
        )
    groups = {name: [f for f in files if _split_of(f, folder) == name] for name in SPLIT_NAMES}
    for name in ("train", "test"):
        if not groups[name]:
            raise InputDataError(
                f"The folder {folder} has no {name} split: expected {name}*.parquet, found "
                f"{', '.join(f.name for f in files[:5])}."
            )
    return {name: _read_split(group, name, progress) for name, group in groups.items() if group}


def _split_of(file: Path, folder: Path) -> str | None:
    # The file's own name decides first, then the folders it lies in, the nearest first.
    for part in reversed(file.relative_to(folder).parts):
        for split, names in SPLIT_NAMES.items():
            if part.lower().startswith(names):
                return split
    return None


def _read_split(files: Sequence[Path], name: str, progress: bool | None) -> RawSplit:
    cache = _cache_file(files)
    cached = _read_cache(cache)
    if cached is not None:
        return cached
    tables = [_read_table(file) for file in files]
    table = pyarrow.concat_tables(tables, promote_options="permissive")
    images = table.column(_column(table, IMAGE_COLUMNS, "image", files[0]))
    labels = table.column(_column(table, LABEL_COLUMNS, "label", files[0]))
    if table.num_rows == 0:
        raise InputDataError(f"The {name} split ({files[0]}) has no rows: expected images.")
    if labels.null_count or not pyarrow.types.is_integer(labels.type):
        raise InputDataError(
            f"The labels of the {name} split ({files[0]}) must be whole numbers without gaps, got "
            f"{labels.type} with {labels.null_count} empty."
        )
    encoded = (_encoded_bytes(row, i, files[0]) for i, row in enumerate(_rows(images)))
    split = RawSplit(
        pixels=decode(encoded, table.num_rows, name, progress),
        labels=torch.from_numpy(labels.to_numpy().astype(np.int64)),
        class_names=_class_names(
            tables[0], labels_name=_column(table, LABEL_COLUMNS, "", files[0])
        ),
    )
    _write_cache(cache, split)
    return split


def _read_table(file: Path) -> pyarrow.Table:
    try:
        return pyarrow.parquet.read_table(file, partitioning=None)
    except (pyarrow.ArrowException, OSError) as error:
        raise InputDataError(
            f"The file {file} cannot be read as parquet ({str(error).splitlines()[0][:120]}): it "
            "is truncated or of another format; copy or download it again."
        ) from error


def _column(table: pyarrow.Table, names: Sequence[str], what: str, file: Path) -> str:
    for name in names:
        if name in table.column_names:
            return name
    raise InputDataError(
        f"The file {file} has no {what} column: expected {' or '.join(names)}, got the columns "
        f"{', '.join(table.column_names)}."
    )


def _rows(images: pyarrow.ChunkedArray) -> Iterable[object]:
    # One chunk at a time as Python objects: the whole column twice would double the memory.
    for chunk in images.chunks:
        for start in range(0, len(chunk), 1000):
            yield from chunk.slice(start, 1000).to_pylist()


def _encoded_bytes(row: object, index: int, file: Path) -> bytes:
    data = row.get("bytes") if isinstance(row, dict) else row
    if not isinstance(data, bytes):
        raise InputDataError(
            f"Image {index} of {file} has no bytes: expected the encoded file in the column's "
            "field 'bytes', not a path to it; embed the images."
        )
    return data


def decode(encoded: Iterable[bytes], count: int, name: str, progress: bool | None = None) -> Tensor:
    """Decode PNG, JPEG, ... into one uint8 tensor (count, C, H, W); grey stays one channel.

    The first image decides between grey and RGB, and the size that all must have.
    """
    pixels: np.ndarray | None = None
    disable = None if progress is None else not progress
    bar = tqdm(encoded, f"decode {name}", total=count, unit="image", disable=disable, leave=False)
    mode = "RGB"
    for index, data in enumerate(bar):
        try:
            image = Image.open(io.BytesIO(data))
            if index == 0:
                mode = "L" if image.mode in ("1", "L") else "RGB"
            array = np.asarray(image.convert(mode))
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise InputDataError(
                f"Image {index} of the {name} split is damaged or not an image ({error}): expected "
                "an encoded picture such as PNG or JPEG."
            ) from error
        if pixels is None:
            pixels = np.empty((count, *array.shape), np.uint8)
        if array.shape != pixels.shape[1:]:
            height, width = array.shape[:2]
            raise InputDataError(
                f"Image {index} of the {name} split is {width} x {height} pixels, but the first is "
                f"{pixels.shape[2]} x {pixels.shape[1]}: resize all images to one size."
            )
        pixels[index] = array
    if pixels is None:
        raise InputDataError(f"The {name} split has no images.")
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _class_names(table: pyarrow.Table, labels_name: str) -> tuple[str, ...]:
    """The names in the schema's "huggingface" entry; empty where there are none."""
    try:
        info = json.loads((table.schema.metadata or {})[b"huggingface"])
        names = info["info"]["features"][labels_name]["names"]
    except (KeyError, TypeError, ValueError):
        return ()
    return tuple(map(str, names)) if isinstance(names, list) else ()


# Decoding 60,000 small JPEGs takes longer than most commands, so pixels are kept in the user's
# cache. A missing, damaged or unwritable cache costs time, never the run.


def _cache_file(files: Sequence[Path]) -> Path | None:
    folder = os.environ.get("AMC_CACHE_DIR")
    if folder is None:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
        folder = str(Path(base) / "amc-compress")
    if folder == "":
        return None
    parts = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    digest = hashlib.sha256(json.dumps(["v1", parts]).encode()).hexdigest()[:24]
    return Path(folder) / f"images-{digest}.safetensors"


def _read_cache(cache: Path | None) -> RawSplit | None:
    if cache is None or not cache.is_file():
        return None
    try:
        with safetensors.safe_open(cache, "pt") as file:
            names = tuple(json.loads(file.metadata()["class_names"]))
            return RawSplit(file.get_tensor("pixels"), file.get_tensor("labels"), names)
    except (SafetensorError, OSError, KeyError, TypeError, ValueError):
        return None


def _write_cache(cache: Path | None, split: RawSplit) -> None:
    if cache is None or split.pixels.numel() > _CACHE_LIMIT:
        return
    temporary = cache.with_suffix(f".{os.getpid()}.tmp")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        safetensors.torch.save_file(
            {"pixels": split.pixels, "labels": split.labels},
            temporary,
            metadata={"class_names": json.dumps(split.class_names)},
        )
        os.replace(temporary, cache)
    except (OSError, SafetensorError):
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
