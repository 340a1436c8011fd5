"""Data that are streamed: the bits of those in memory, however stored, by however many workers."""

from __future__ import annotations

import itertools
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support.networks.zoo import library
from support.stored_images import LAYOUTS, encode, write_classes, write_parquet, write_shards
from support.stored_images import table as table_of
from torch import Tensor

from amc_compress.benchmarks.speed.streaming import Shape, loading, make_shards
from amc_compress.benchmarks.speed.streaming import batches as measured
from amc_compress.data import DataSplits, load_data
from amc_compress.data.augmenting.choice import chosen_augmentation
from amc_compress.data.augmenting.library import OF_LIBRARY
from amc_compress.data.raw import Whole
from amc_compress.data.streaming.memory import usual_memory
from amc_compress.data.streaming.pixels import StreamedPixels
from amc_compress.data.streaming.workers import carried_out
from amc_env.errors import InputDataError, MissingDependencyError

CLASSES = ("ant", "bee", "cat")
NAMES = ("train", "calibration", "validation", "test")
TINY, SOME = 1, 30_000  # bytes: nothing is held; what the search reads is


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))


def photos(n: int, seed: int) -> list[bytes]:
    """Images of several sizes, some of them grey, a third of them twice."""
    rng = np.random.default_rng(seed)
    made = []
    for number in range(n - n // 3):
        shape = tuple(rng.integers(14, 30, 2)) + ((3,) if number % 3 else ())
        picture = Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))
        made.append(encode(picture, "JPEG" if number % 2 else "PNG"))
    return [*made, *made[: n // 3]]


def stored(folder: Path, layout: str, n: int = 60) -> Path:
    splits = {
        "train": (photos(n, 0), [i % 3 for i in range(n)]),
        "test": (photos(9, 1), [i % 3 for i in range(9)]),
    }
    LAYOUTS[layout](folder, splits, CLASSES)
    return folder


def loaded(folder: Path, memory: int | None = None, workers: int = 0, **options: Any) -> DataSplits:
    settings: dict[str, Any] = {
        "image_size": 12, "batch_size": 16, "calibration_size": 20, "progress": False, **options
    }  # fmt: skip
    return load_data(folder, memory=memory, workers=workers, **settings)


def batches(data: DataSplits) -> Iterator[tuple[Tensor, Tensor]]:
    for name, epoch in (*((name, 0) for name in NAMES), ("train", 1)):
        loader = getattr(data, name)
        loader.set_epoch(epoch)
        yield from loader


def same(first: DataSplits, second: DataSplits) -> bool:
    pairs = itertools.zip_longest(batches(first), batches(second))
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def is_streamed(data: DataSplits) -> list[str]:
    return [name for name in NAMES if isinstance(getattr(data, name).pixels, StreamedPixels)]


@pytest.mark.parametrize("layout", ["parquet files", "save_to_disk", "class folders", "tar shards"])
def test_streamed_batches_have_the_bits_of_those_in_memory(tmp_path: Path, layout: str) -> None:
    folder = stored(tmp_path / "data", layout)
    held, none, some = loaded(folder), loaded(folder, TINY), loaded(folder, SOME)
    assert is_streamed(held) == []
    assert is_streamed(none) == list(NAMES)
    assert is_streamed(some) == ["train", "test"]
    assert same(held, none)
    assert same(held, some)
    assert len(held.train.labels) < 54  # a copy of a held-out image is left out, streamed too
    assert torch.equal(held.example, none.example)
    streamed = [note for note in none.notes if "streamed" in note]
    assert [note for note in none.notes if note not in streamed] == list(held.notes)
    assert streamed == [
        "69 images are 4.06e-05 GB decoded, twice that while they are cut, of at most 1e-09 GB: "
        "streamed"
    ]


def test_the_number_of_workers_changes_no_bit(tmp_path: Path) -> None:
    folder = stored(tmp_path / "data", "tar shards")
    held = loaded(folder)
    before = torch.get_rng_state()
    for memory, workers in ((TINY, 2), (None, 1)):
        assert same(held, loaded(folder, memory, workers))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_pass_begins_at_any_batch(tmp_path: Path) -> None:
    data = loaded(stored(tmp_path / "data", "class folders"), TINY)
    whole = list(data.train)
    assert len(whole) == len(data.train) > 2
    rest = list(data.train.from_batch(2))
    assert len(rest) == len(whole) - 2
    assert all(
        torch.equal(a, b)
        for x, y in zip(rest, whole[2:], strict=True)
        for a, b in zip(x, y, strict=True)
    )
    assert list(data.train.from_batch(len(whole))) == []


def test_the_second_time_no_image_is_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path / "data", "parquet files")
    first = loaded(folder, TINY)

    def fail(*arguments: Any) -> Any:
        raise AssertionError("an image was decoded")

    monkeypatch.setattr("amc_compress.data.streaming.examination.decode_one", fail)
    assert same(first, loaded(folder, TINY))


def test_16_bit_numbers_without_a_range_are_streamed_alike(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    images = []
    for _ in range(30):
        picture = Image.fromarray(rng.integers(0, 65536, (6, 6)).astype(np.int32))
        images.append(encode(picture, "TIFF"))
    for split in ("train", "test"):
        part = images if split == "train" else images[:4]
        write_classes(
            tmp_path / "data" / split, part, [i % 2 for i in range(len(part))], CLASSES, ".tif"
        )
    options: dict[str, Any] = {"image_size": None}
    held, streamed = (loaded(tmp_path / "data", memory, **options) for memory in (None, TINY))
    assert same(held, streamed)
    assert any("32-bit integers: 65535 is white" in note for note in streamed.notes)


def test_mistakes_in_streamed_images_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stored(tmp_path / "data", "class folders")
    with pytest.raises(
        InputDataError, match=r"(?s)Image \d+ of the train split \(.*\) is \d+ x \d+"
    ):
        loaded(folder, TINY, image_size=None)
    data = loaded(folder, TINY)
    bad = sorted((folder / "train" / "ant").iterdir())[0]
    size = bad.stat().st_size
    bad.write_bytes(b"x" * size)
    with pytest.raises(InputDataError, match=r"^Image 0 of the train split .*damaged"):
        list(itertools.chain(data.train, data.validation))
    with pytest.raises(InputDataError, match=r"^Image 0 of the train split .*damaged"):
        loaded(folder, TINY, workers=1)
    monkeypatch.setenv("AMC_CACHE_DIR", "")
    with pytest.raises(InputDataError, match="AMC_CACHE_DIR is empty: set it"):
        loaded(stored(tmp_path / "tables", "parquet files"), TINY)


def test_shards_that_are_none_are_named(tmp_path: Path) -> None:
    images, labels = photos(6, 0), list("aabbcc")
    write_shards(tmp_path / "a", "train", images, labels)
    write_shards(tmp_path / "a", "test", images, labels)
    assert loaded(tmp_path / "a").class_names == ("a", "b", "c")
    (tmp_path / "a" / "more.tar").write_bytes(b"")
    with pytest.raises(InputDataError, match=r"tar files of no split: .*got more\.tar; rename"):
        loaded(tmp_path / "a")
    (tmp_path / "a" / "more.tar").rename(tmp_path / "a" / "train-9.tar")
    with pytest.raises(InputDataError, match=r"train-9\.tar cannot be read as tar"):
        loaded(tmp_path / "a")
    write_shards(tmp_path / "b", "train", images, labels, ".txt")
    write_shards(tmp_path / "b", "test", images, labels)
    with pytest.raises(InputDataError, match=r"no rows|no images"):
        loaded(tmp_path / "b")


def test_half_of_the_machine_is_the_usual_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit = tmp_path / "limit"
    limit.write_text("1000\n")
    monkeypatch.setattr("amc_compress.data.streaming.memory._LIMITS", (str(limit), "/none"))
    assert usual_memory() == 500


def _ended(job: int) -> int:
    if job == 2:
        os.kill(os.getpid(), signal.SIGKILL)
    return job


def test_a_killed_worker_ends_in_a_sentence() -> None:
    assert list(carried_out(abs, range(-3, 0), 1)) == [3, 2, 1]
    with pytest.raises(InputDataError, match=r"^A process that reads .* --resume"):
        list(carried_out(_ended, range(5), 1))


# ---- augmentation


@pytest.mark.parametrize("words", [("crop", "flip"), ("crop",), ("flip",), ("none",)])
def test_augmentations_of_our_own_are_chosen_by_words(tmp_path: Path, words: Any) -> None:
    folder = stored(tmp_path / "data", "class folders")
    plain, held = loaded(folder, augment=("none",)), loaded(folder, augment=words)
    assert same(held, loaded(folder, TINY, augment=words))
    held.train.set_epoch(0)
    (before, _), (after, _) = next(iter(plain.train)), next(iter(held.train))
    assert after.shape == before.shape
    alike = [
        bool(torch.equal(a, b) or torch.equal(a, b.flip(2)))
        for a, b in zip(after, before, strict=True)
    ]
    assert all(alike) is ("crop" not in words)
    assert torch.equal(after, before) is (words == ("none",))


def test_standard_is_what_is_done_where_nothing_is_said(tmp_path: Path) -> None:
    folder = stored(tmp_path / "data", "class folders")
    assert same(loaded(folder), loaded(folder, augment=("standard",)))
    assert same(loaded(folder, augment=False), loaded(folder, augment="none"))


def test_without_torchvision_its_augmentations_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "torchvision.transforms", None)
    with pytest.raises(MissingDependencyError, match=r"--augment mixup needs torchvision .*vision"):
        loaded(tmp_path, augment=("standard", "mixup"))
    with pytest.raises(ValueError, match="Expected --augment"):
        loaded(tmp_path, augment=("standard", "crop"))
    with pytest.raises(InputDataError, match="Expected --augment standard or none for data whose"):
        chosen_augmentation(("flip",), Whole({}, CLASSES, [], moves=False), (3, 8, 8), None, None)


def test_mixed_batches_are_the_same_for_any_number_of_workers(tmp_path: Path) -> None:
    library("torchvision")
    folder = stored(tmp_path / "data", "class folders")
    words = ("standard", "randaugment", "mixup", "cutmix")
    one, other = loaded(folder, augment=words), loaded(folder, TINY, 2, augment=words)
    assert same(one, other)
    one.train.set_epoch(0)
    images, shares = next(iter(one.train))
    assert images.shape == (16, 3, 12, 12)
    assert shares.shape == (16, 3)
    torch.testing.assert_close(shares.sum(1), torch.ones(16))
    assert ((shares > 0).sum(1) > 1).any()
    one.train.set_epoch(1)
    assert not torch.equal(next(iter(one.train))[0], images)
    assert words[1:] == OF_LIBRARY


def test_the_copy_of_a_table_has_every_row(tmp_path: Path) -> None:
    content = table_of(photos(150, 2), [i % 3 for i in range(150)])
    for split in ("train", "test"):
        write_parquet(tmp_path / "data" / f"{split}.parquet", content)
    pixels = loaded(tmp_path / "data", TINY).test.pixels
    assert isinstance(pixels, StreamedPixels)
    rows = content.column("image").to_pylist()
    assert [pixels.encoded[i] for i in range(150)] == [row["bytes"] for row in rows]


def test_shards_have_every_class_and_no_image_twice(tmp_path: Path) -> None:
    make_shards(tmp_path / "data", 480, 40, 24)
    shape = Shape(tmp_path / "data", memory=1, size=16, batch=32)
    data = shape.load(0)
    assert data.n_classes == 40
    assert not [note for note in data.notes if "repeated" in note or "left out" in note]
    assert loading(shape, 0).images == 520
    assert measured(shape, 0, limit=64).images == 64
