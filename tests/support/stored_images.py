"""Small data sets on disk in every layout, for tests of what reads them."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.ipc
import pyarrow.parquet as pq
from PIL import Image

Encoded = Sequence[bytes | None]


def encode(image: Image.Image | np.ndarray, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, format, **options)
    return buffer.getvalue()


def pictures(n: int, seed: int = 0, shape: tuple[int, ...] = (6, 6, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(n)]


def table(
    images: Encoded,
    labels: Any,
    *,
    image: str = "image",
    label: str = "label",
    classes: Sequence[str] | None = None,
    plain: bool = False,
) -> pa.Table:
    """A table as the ``datasets`` library writes it; ``labels`` may be a pyarrow array."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    rows = [{"bytes": data, "path": f"{n}.png"} for n, data in enumerate(images)]
    column = pa.array(list(images), pa.binary()) if plain else pa.array(rows, struct)
    made = pa.table({image: column, label: labels})
    if classes is None:
        return made
    features = {label: {"_type": "ClassLabel", "names": list(classes)}}
    return made.replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )


def write_parquet(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(content, path)


def write_arrow(path: Path, content: pa.Table) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, content.schema) as writer:
        writer.write_table(content)


def write_saved(folder: Path, content: pa.Table, split: str | None = None) -> None:
    """What ``Dataset.save_to_disk`` writes, in two files, with a cache file next to them."""
    half = len(content) // 2
    parts = [content.slice(0, half), content.slice(half)]
    names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
    for name, part in zip(names, parts, strict=True):
        write_arrow(folder / name, part)
    write_arrow(folder / "cache-0123456789abcdef.arrow", content)
    state = {"_data_files": [{"filename": name} for name in names], "_split": split}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")


def write_saved_splits(folder: Path, splits: Mapping[str, pa.Table]) -> None:
    for name, content in splits.items():
        write_saved(folder / name, content, name)
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": list(splits)}))


def write_classes(
    folder: Path, images: Encoded, labels: Sequence[int], names: Sequence[str], ending: str = ".png"
) -> None:
    """One folder per class, as torchvision's ``ImageFolder`` takes them."""
    for number, (data, label) in enumerate(zip(images, labels, strict=True)):
        place = folder / names[label] / f"{number:04}{ending}"
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data or b"")


Write = Callable[[Path, Mapping[str, tuple[Encoded, Sequence[int]]], Sequence[str]], None]


def _parquet(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        write_parquet(folder / f"{name}-00000-of-00001.parquet", table(images, labels))


def _folders_of_parquet(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        write_parquet(folder / f"default/{name}/0000.parquet", table(images, labels, image="img"))


def _bytes_without_paths(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        content = table(images, labels, plain=True, label="fine_label")
        write_parquet(folder / "data" / f"{name}.parquet", content)


def _strings(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        content = table(images, [classes[label] for label in labels])
        write_parquet(folder / f"{name}.parquet", content)


def _saved(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    made = {name: table(*rows, classes=classes) for name, rows in splits.items()}
    write_saved_splits(folder, made)


def _hub_cache(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, rows in splits.items():
        write_arrow(folder / f"things-{name}.arrow", table(*rows, label="labels"))


def _class_folders(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        write_classes(folder / name, images, labels, classes)


def write_shards(
    folder: Path, split: str, images: Encoded, labels: Sequence[Any], ending: str = ".png"
) -> None:
    """Two tar files as the ``webdataset`` package writes them."""
    folder.mkdir(parents=True, exist_ok=True)
    half = (len(images) + 1) // 2
    for number, start in enumerate((0, half)):
        with tarfile.open(folder / f"{split}-{number:06}.tar", "w") as tar:
            for row in range(start, min(start + half, len(images))):
                parts = ((ending, images[row] or b""), (".cls", str(labels[row]).encode()))
                for suffix, data in parts:
                    member = tarfile.TarInfo(f"{row:06}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


def _shards(folder: Path, splits: Any, classes: Sequence[str]) -> None:
    for name, (images, labels) in splits.items():
        write_shards(folder, name, images, labels)


LAYOUTS: dict[str, Write] = {
    "parquet files": _parquet,
    "folders of parquet": _folders_of_parquet,
    "plain bytes": _bytes_without_paths,
    "strings": _strings,
    "save_to_disk": _saved,
    "Arrow files": _hub_cache,
    "class folders": _class_folders,
    "tar shards": _shards,
}
