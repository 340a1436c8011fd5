"""Layouts, columns, labels and copies: the same data set however it is stored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from support.stored_images import (
    LAYOUTS,
    encode,
    pictures,
    table,
    write_arrow,
    write_classes,
    write_parquet,
    write_saved,
)

from amc_compress.data import DataSplits, load_data
from amc_env.errors import InputDataError

CLASSES = ("ant", "bee", "cat")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))


def encoded(n: int, seed: int = 0) -> list[bytes]:
    return [encode(image) for image in pictures(n, seed)]


def in_turn(n: int) -> list[int]:
    return [i % 3 for i in range(n)]


def loaded(folder: Path | str, **options: Any) -> DataSplits:
    return load_data(folder, validation_split="tail", progress=False, **options)


def pairs(data: DataSplits) -> dict[str, set[tuple[bytes, int]]]:
    """What each split holds, without an order: class folders have another one than tables."""
    return {
        name: {
            (image.numpy().tobytes(), int(label))
            for part in parts
            for image, label in zip(part.pixels, part.labels, strict=True)
        }
        for name, parts in (("train", (data.train, data.validation)), ("test", (data.test,)))
    }


def two_splits(folder: Path, train: Any, test: Any) -> Path:
    write_parquet(folder / "train.parquet", train)
    write_parquet(folder / "test.parquet", test)
    return folder


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_data_in_every_layout(layout: str, tmp_path: Path) -> None:
    splits = {"train": (encoded(18), in_turn(18)), "test": (encoded(9, 1), in_turn(9))}
    LAYOUTS[layout](tmp_path / "set", splits, CLASSES)
    data = loaded(tmp_path / "set")
    expected = {
        name: {
            (image.transpose(2, 0, 1).tobytes(), i % 3)
            for i, image in enumerate(pictures(len(splits[name][0]), seed))
        }
        for name, seed in (("train", 0), ("test", 1))
    }
    assert pairs(data) == expected
    assert data.class_names in (CLASSES, ("0", "1", "2"))
    assert pairs(loaded(tmp_path / "set")) == expected  # from the cache


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_split_is_the_test_set_where_there_is_no_other(
    layout: str, tmp_path: Path
) -> None:
    splits = {"train": (encoded(20), in_turn(20)), "val": (encoded(6, 1), in_turn(6))}
    LAYOUTS[layout](tmp_path / "set", splits, CLASSES)
    data = loaded(tmp_path / "set")
    assert (data.train.n_images, data.validation.n_images, data.test.n_images) == (18, 2, 6)
    assert any("no test split" in note for note in data.notes)


@pytest.mark.parametrize("layout", ["class folders", "save_to_disk"])
def test_a_set_that_names_no_split_is_cut_always_alike(layout: str, tmp_path: Path) -> None:
    if layout == "class folders":
        write_classes(tmp_path / "set", encoded(30), in_turn(30), CLASSES)
    else:
        write_saved(tmp_path / "set", table(encoded(30), in_turn(30), classes=CLASSES))
    data = loaded(tmp_path / "set", split_seed=0)
    assert (data.train.n_images, data.validation.n_images, data.test.n_images) == (22, 2, 6)
    assert data.test.labels.bincount().tolist() == [2, 2, 2]
    assert torch.equal(loaded(tmp_path / "set", split_seed=5).test.pixels, data.test.pixels)
    assert any("nothing names a split" in note for note in data.notes)


def test_jpegs_of_any_size_in_class_folders(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for split, n in (("train", 12), ("val", 6)):
        sizes = rng.integers(20, 90, (n, 2)).tolist()
        images = [
            encode(Image.new("RGB", (w, h), (80 * (i % 3), 0, 0)), "JPEG")
            for i, (w, h) in enumerate(sizes)
        ]
        write_classes(tmp_path / "set" / split, images, in_turn(n), CLASSES, ".JPEG")
    (tmp_path / "set/train/ant/Thumbs.db").write_text("x")
    with pytest.raises(InputDataError, match=r"Image 1 of .*ant/0003.*but the first is .*-size N"):
        loaded(tmp_path / "set")
    data = loaded(tmp_path / "set", image_size=16, batch_size=5)
    assert data.class_names == CLASSES
    assert data.image_shape == (3, 16, 16)
    reds = [float(data.test.pixels[data.test.labels == c, 0].float().mean()) for c in range(3)]
    assert reds == pytest.approx([0, 80, 160], abs=3)
    for images, _ in data.train:
        assert images.shape[1:] == (3, 16, 16)
    assert data.train.images.shape == (data.train.n_images, 3, 16, 16)
    assert any("1 file in train left out: no images" in note for note in data.notes)


@pytest.mark.parametrize(("image", "label"), [("photo", "answer"), ("img", "coarse_label")])
@pytest.mark.parametrize("write", [write_parquet, write_arrow])
def test_columns_of_any_name_can_be_chosen(
    image: str, label: str, write: Any, tmp_path: Path
) -> None:
    for name, n in (("train", 12), ("test", 6)):
        content = table(encoded(n, n), in_turn(n), image=image, label="fine_label")
        content = content.append_column(label, pa.array([1 - i % 2 for i in range(n)]))
        ending = "parquet" if write is write_parquet else "arrow"
        write(tmp_path / f"set/{name}.{ending}", content)
    data = loaded(tmp_path / "set", image_column=image, label_column=label)
    assert data.test.labels.tolist() == [1, 0, 1, 0, 1, 0]
    with pytest.raises(InputDataError, match=r"no label column: expected nothing.*--label-column"):
        loaded(tmp_path / "set", image_column=image, label_column="nothing")


def test_the_label_column_that_was_taken_is_said(tmp_path: Path) -> None:
    content = table(encoded(12), in_turn(12), label="fine_label")
    content = content.append_column("label", pa.array([0, 1] * 6))
    folder = two_splits(tmp_path / "set", content, content.slice(0, 2))
    assert "labels are column 'label'; --label-column takes fine_label" in loaded(folder).notes


KINDS: dict[str, Any] = {
    "int8": pa.array([0, 1, 2], pa.int8()),
    "uint64": pa.array([0, 1, 2], pa.uint64()),
    "float": pa.array([0.0, 1.0, 2.0]),
    "half": pa.array(np.array([0, 1, 2], np.float16)),
    "decimal": pa.array([Decimal(0), Decimal(1), Decimal(2)]),
    "strings": pa.array(["ant", "bee", "cat"]),
    "large strings": pa.array(["x", "y", "z"], pa.large_string()),
    "dictionary": pa.array(["b", "a", "b"]).dictionary_encode(),
    "bools": pa.array([False, True, True]),
}
NUMBERED = {"dictionary": [1, 0, 1], "bools": [0, 1, 1]}


@pytest.mark.parametrize("kind", KINDS)
def test_labels_of_every_kind_become_class_numbers(kind: str, tmp_path: Path) -> None:
    values = KINDS[kind].take(pa.array(in_turn(30)))
    train, test = table(encoded(30), values), table(encoded(6, 1), values.slice(0, 6))
    data = loaded(two_splits(tmp_path / "set", train, test))
    assert data.test.labels.tolist() == NUMBERED.get(kind, [0, 1, 2]) * 2
    assert data.n_classes == len(set(KINDS[kind].to_pylist()))
    said = any(note.startswith("labels are") for note in data.notes)
    assert said == (kind not in ("int8", "uint64"))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([1, 2, 3], "got 1 to 3: subtract 1, or number the classes from 0"),
        ([0, 1, 3], "got 3 classes up to 3 without a 2: number the classes"),
        ([0, 1, 30_000_000], "got 3 classes up to 30000000 without a 2"),
        ([0, 1, -1], r"must lie in 0\.\..*got -1.*hidden label"),
        ([0, 1, 2**63], "class numbers, got 9223372036854775808"),
        ([0.0, 0.5, 1.0], r"must be whole numbers, got 0\.5"),
        ([0.0, float("nan"), 1.0], "must be whole numbers, got nan"),
        ([0, None, 1], "whole numbers without gaps, got int64 with 1[02] empty"),
        ([[0], [1], [2]], "one whole number or one string per image, got list"),
        ([b"a", b"b", b"c"], "one whole number or one string per image, got binary"),
    ],
)
def test_labels_that_are_no_class_numbers_are_rejected_at_once(
    labels: list[Any], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("amc_compress.data.splits.decode_splits", None)  # nothing is decoded
    values = pa.array(labels, pa.uint64()) if labels[-1] == 2**63 else pa.array(labels)
    values = values.take(pa.array(in_turn(30)))
    folder = two_splits(
        tmp_path / "set", table(encoded(30), values), table(encoded(3), values.slice(0, 3))
    )
    started = time.process_time()
    with pytest.raises(InputDataError, match=message):
        loaded(folder)
    assert time.process_time() - started < 5


def test_classes_in_another_order_are_mapped_by_name(tmp_path: Path) -> None:
    train = table(encoded(12), in_turn(12), classes=CLASSES)
    test = table(encoded(3, 1), [0, 1, 2], classes=("cat", "ant", "bee"))
    data = loaded(two_splits(tmp_path / "a", train, test))
    assert data.test.labels.tolist() == [2, 0, 1]
    assert "the test split lists its classes in another order: mapped by name" in data.notes
    text = table(encoded(3, 1), ["bee", "cat", "bee"])
    assert loaded(two_splits(tmp_path / "b", train, text)).test.labels.tolist() == [1, 2, 1]
    for bad in (table(encoded(1, 1), ["dog"]), table(encoded(1, 1), [0], classes=("dog", "ant"))):
        with pytest.raises(InputDataError, match="hold 'dog', but the training split has only 3"):
            loaded(two_splits(tmp_path / "c", train, bad))


def test_strings_and_bare_numbers_do_not_mix(tmp_path: Path) -> None:
    train = table(encoded(12), ["a", "b"] * 6)
    with pytest.raises(InputDataError, match="numbers, those of the training split strings"):
        loaded(two_splits(tmp_path / "set", train, table(encoded(2, 1), [0, 1])))


@pytest.mark.parametrize(
    "copy", ["data/train-00000-of-00001.parquet", "train-00000-of-00001-0123456789abcdef.parquet"]
)
@pytest.mark.parametrize("compression", ["same", "other"])
def test_a_split_that_is_stored_twice_counts_once(
    copy: str, compression: str, tmp_path: Path
) -> None:
    content, folder = table(encoded(20), in_turn(20)), tmp_path / "set"
    write_parquet(folder / "train-00000-of-00001.parquet", content)
    write_parquet(folder / "test-00000-of-00001.parquet", table(encoded(5, 1), in_turn(5)))
    if compression == "other":
        content = content.append_column("more", pa.array(["x" * i for i in range(20)]))
    write_parquet(folder / copy, content)
    data = loaded(folder)
    assert data.train.n_images + data.validation.n_images == 20
    assert any("stored twice" in note or "left out" in note for note in data.notes)


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (("small/{}-00000-of-00001", "large/{}-00000-of-00001"), "small"),
        (("{}_small", "{}_large"), "small"),
        (("digits10-{}", "digits100-{}"), "digits10"),
        (("fold1/{}/0000", "fold2/{}/0000"), "fold1"),
        (("{}", "{}-extra"), "extra"),
        (("2019-{}", "2020-{}"), "2019"),
    ],
)
def test_several_configurations_are_told_apart(
    names: Sequence[str], chosen: str, tmp_path: Path
) -> None:
    folder = tmp_path / "set"
    for number, name in enumerate(names):
        for split, n in (("train", 20 + 10 * number), ("test", 5)):
            seed = 10 * number + n
            content = table(encoded(n, seed), in_turn(n))
            write_parquet(folder / f"{name.format(split)}.parquet", content)
    with pytest.raises(InputDataError, match=r"has several data sets with a train split: .*:NAME"):
        loaded(folder)
    data = loaded(f"{folder}:{chosen}")
    number = next(n for n, name in enumerate(names) if chosen in name)
    assert data.train.n_images + data.validation.n_images == 20 + 10 * number
    with pytest.raises(InputDataError, match="no configuration 'none': expected one of"):
        loaded(f"{folder}:none")


@pytest.mark.parametrize(
    "names",
    [
        ("train-00000-of-00002", "train-00001-of-00002"),
        ("train_batch_1", "train_batch_2"),
        ("train/part-0", "train/part-1"),
        ("train/0000", "train/0001"),
        (
            "data/train-00000-of-00002-aaaaaaaaaaaaaaaa",
            "data/train-00001-of-00002-bbbbbbbbbbbbbbbb",
        ),
        ("my-train.0", "my-train.1"),
    ],
)
def test_numbered_files_are_one_split(names: Sequence[str], tmp_path: Path) -> None:
    for number, name in enumerate(names):
        write_parquet(tmp_path / f"set/{name}.parquet", table(encoded(10, number + 5), in_turn(10)))
    write_parquet(tmp_path / "set/test.parquet", table(encoded(5), in_turn(5)))
    (tmp_path / "set/.cache").mkdir()
    (tmp_path / "set/.cache/train-9.parquet").write_bytes(b"hidden")
    data = loaded(tmp_path / "set")
    assert data.train.n_images + data.validation.n_images == 20


def test_two_versions_of_one_part_are_rejected(tmp_path: Path) -> None:
    for version in "ab":
        content = table(encoded(10, ord(version)), in_turn(10))
        write_parquet(tmp_path / f"set/train-00000-of-00001-{version * 16}.parquet", content)
    write_parquet(tmp_path / "set/test.parquet", table(encoded(5), in_turn(5)))
    with pytest.raises(InputDataError, match="two versions of one part"):
        loaded(tmp_path / "set")


@pytest.mark.parametrize("format", ["PNG", "BMP"])
@pytest.mark.parametrize("own_validation", [True, False])
def test_copies_of_validation_images_are_not_trained_on(
    format: str, own_validation: bool, tmp_path: Path
) -> None:
    images = pictures(20)
    once = [encode(image) for image in images]
    again = [encode(image, format) for image in images[12:]]
    train, labels = (once, [0, 1] * 10) if own_validation else (again + once, [0, 1] * 14)
    test = table([*encoded(4, 9), once[0]], [0, 1, 0, 1, 0])
    folder = two_splits(tmp_path / "set", table(train, labels), test)
    if own_validation:
        write_parquet(folder / "validation.parquet", table(again, [0, 1] * 4))
    data = loaded(folder, validation_size=None if own_validation else 8)
    trained = {image.numpy().tobytes() for image in data.train.pixels}
    assert not trained & {image.numpy().tobytes() for image in data.validation.pixels}
    assert data.train.n_images == 12
    assert data.validation.n_images == 8
    assert (
        "8 training images also in validation, pixel for pixel: left out of training" in data.notes
    )
    assert "1 test image also in training: left in" in data.notes


def test_images_that_repeat_in_training_are_counted(tmp_path: Path) -> None:
    images = encoded(12)
    train = table([images[0], images[0], images[0], *images], [0, 1, 0, *in_turn(12)])
    data = loaded(two_splits(tmp_path / "set", train, table(encoded(3, 1), [0, 1, 2])))
    assert data.train.n_images == 14
    assert "3 training images repeated (1 with another label): left in" in data.notes


def test_bad_folders_are_one_sentence(tmp_path: Path) -> None:
    write_saved(tmp_path / "saved", table(encoded(12), in_turn(12)))
    (tmp_path / "saved/data-00001-of-00002.arrow").unlink()
    with pytest.raises(InputDataError, match=r"data-00001-of-00002\.arrow is missing"):
        loaded(tmp_path / "saved")
    (tmp_path / "saved/state.json").write_text("{")
    with pytest.raises(InputDataError, match=r"state\.json is missing or damaged"):
        loaded(tmp_path / "saved")
    write_arrow(tmp_path / "arrow/train.arrow", table(encoded(12), in_turn(12)))
    (tmp_path / "arrow/test.arrow").write_bytes(b"nonsense")
    with pytest.raises(InputDataError, match="cannot be read as Arrow"):
        loaded(tmp_path / "arrow")
    for split in ("train", "test"):
        write_classes(tmp_path / "flat", encoded(3), [0] * 3, (split,))
    with pytest.raises(InputDataError, match="lie directly in test, train: expected a folder for"):
        loaded(tmp_path / "flat")
    write_classes(tmp_path / "one", encoded(3), [0] * 3, ("ant",))
    with pytest.raises(InputDataError, match="two or more folders of images"):
        loaded(tmp_path / "one")
    (tmp_path / "one/bee").mkdir()
    with pytest.raises(InputDataError, match=r"class folder .*bee holds no images"):
        loaded(tmp_path / "one")
    with pytest.raises(InputDataError, match=r"holds no tables: --image-column"):
        loaded(tmp_path / "one", image_column="x")
    with pytest.raises(InputDataError, match="leave out --image-size"):
        loaded("digits", image_size=32)
