"""Data sets: splits, parquet folders, and the sentences for bad ones."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import Tensor

from amc_compress.config.run_config import RunConfig
from amc_compress.data import load_data
from amc_env.errors import InputDataError, MissingDependencyError


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMC_CACHE_DIR", str(tmp_path / "cache"))


def png(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, "PNG")
    return buffer.getvalue()


def pictures(n: int, seed: int = 0, shape: tuple[int, ...] = (6, 6, 3)) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, 256, shape, dtype=np.uint8) for _ in range(n)]


def write(
    path: Path,
    images: Sequence[Any],
    labels: Sequence[int | None],
    *,
    image: str = "img",
    label: str = "label",
    classes: Sequence[str] | None = None,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"bytes": png(i) if isinstance(i, np.ndarray) else i, "path": f"{n}.png"}
        for n, i in enumerate(images)
    ]
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    table = pa.table({image: pa.array(rows, struct), label: pa.array(labels, pa.int64())})
    if classes is not None:
        features = {label: {"_type": "ClassLabel", "names": list(classes)}}
        info = json.dumps({"info": {"features": features}})
        table = table.replace_schema_metadata({"huggingface": info})
    pq.write_table(table, path)


def rows(pixels: Tensor) -> set[bytes]:
    return {image.numpy().tobytes() for image in pixels}


def folder(tmp_path: Path, n: int = 30, **options: Any) -> Path:
    labels = [i % 3 for i in range(n)]
    write(tmp_path / "set/train-00000-of-00001.parquet", pictures(n), labels, **options)
    write(tmp_path / "set/test-00000-of-00001.parquet", pictures(9, 1), labels[:9], **options)
    return tmp_path / "set"


def test_digits_splits_share_no_image_row_and_keep_all() -> None:
    data = load_data("digits")
    sizes = [part.n_images for part in (data.train, data.validation, data.test)]
    assert sizes == [1078, 359, 360]
    bunch = load_digits()
    everything = torch.cat([p.pixels for p in (data.train, data.validation, data.test)])
    got = sorted(image.numpy().tobytes() for image in everything)
    assert got == sorted(image.astype(np.uint8).tobytes() for image in bunch.images)
    assert rows(data.calibration.pixels) <= rows(data.train.pixels)
    assert data.calibration.n_images == 1000
    assert data.calibration.augmentation is None
    assert (data.image_shape, data.n_classes) == ((1, 8, 8), 10)


def test_digits_are_stratified_and_scaled() -> None:
    data = load_data("digits")
    for part in (data.validation, data.test):
        counts = torch.bincount(part.labels)
        assert int(counts.max() - counts.min()) <= 2
        assert (float(part.images.min()), float(part.images.max())) == (-1.0, 1.0)


def test_seed_moves_the_order_but_not_the_splits() -> None:
    a, b = load_data("digits", seed=0), load_data("digits", seed=1)
    for name in ("train", "calibration", "validation", "test"):
        assert torch.equal(getattr(a, name).pixels, getattr(b, name).pixels)
    assert not torch.equal(next(iter(a.train))[1], next(iter(b.train))[1])
    c = load_data("digits", split_seed=1)
    assert torch.equal(a.test.pixels, c.test.pixels)
    assert not torch.equal(a.validation.pixels, c.validation.pixels)


def test_parquet_round_trips(tmp_path: Path) -> None:
    path = folder(tmp_path, classes=("ant", "bee", "cat"))
    data = load_data(path, validation_size=6, augment=False, mean=(0, 0, 0), std=(1, 1, 1))
    assert data.class_names == ("ant", "bee", "cat")
    assert data.image_shape == (3, 6, 6)
    expected = np.stack(pictures(9, 1)).transpose(0, 3, 1, 2)
    assert np.array_equal(data.test.pixels.numpy(), expected)
    assert np.allclose(data.test.images.numpy(), expected / 255, atol=1e-6)
    assert data.test.labels.tolist() == [0, 1, 2] * 3
    together = rows(data.train.pixels) | rows(data.validation.pixels)
    assert together == {p.transpose(2, 0, 1).tobytes() for p in pictures(30)}
    assert not rows(data.train.pixels) & rows(data.validation.pixels)
    assert not rows(data.calibration.pixels) & rows(data.validation.pixels)
    assert data.validation.labels.bincount().tolist() == [2, 2, 2]


def test_colour_images_get_imagenet_normalisation(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path))
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    pixel = data.test.pixels[0, :, 2, 3].tolist()
    expected = [(p / 255 - m) / s for p, m, s in zip(pixel, mean, std, strict=True)]
    assert data.test.images[0, :, 2, 3].tolist() == pytest.approx(expected, abs=1e-5)


def test_tail_takes_the_last_rows(tmp_path: Path) -> None:
    data = load_data(folder(tmp_path), validation_size=4, validation_split="tail")
    expected = np.stack(pictures(30)[26:]).transpose(0, 3, 1, 2)
    assert np.array_equal(data.validation.pixels.numpy(), expected)


def test_validation_files_folders_and_other_column_names_are_honoured(tmp_path: Path) -> None:
    for part, seed in (("train", 0), ("valid", 1), ("test", 2)):
        grey = pictures(8, seed, (5, 5))
        path = tmp_path / f"set/default/{part}/0000.parquet"
        write(path, grey, [0, 1] * 4, image="image", label="labels")
    data = load_data(tmp_path / "set")
    assert data.image_shape == (1, 5, 5)
    assert data.train.n_images == data.validation.n_images == 8
    assert np.array_equal(data.validation.pixels[:, 0].numpy(), np.stack(pictures(8, 1, (5, 5))))


def test_several_files_of_a_split_are_joined_in_order(tmp_path: Path) -> None:
    path = folder(tmp_path)
    write(path / "test-00001-of-00002.parquet", pictures(2, 7), [2, 2])
    assert load_data(path).test.labels.tolist() == [0, 1, 2] * 3 + [2, 2]


def test_second_read_comes_from_the_cache_until_the_file_changes(tmp_path: Path) -> None:
    path = folder(tmp_path)
    before = sorted(p.name for p in path.iterdir())
    first = load_data(path)
    cache = sorted((tmp_path / "cache").iterdir())
    assert len(cache) == 2
    assert sorted(p.name for p in path.iterdir()) == before
    assert torch.equal(load_data(path).train.pixels, first.train.pixels)
    for file in cache:  # a damaged cache is only slower
        file.write_bytes(b"nonsense")
    assert torch.equal(load_data(path).train.pixels, first.train.pixels)
    write(path / "test-00000-of-00001.parquet", pictures(4, 3), [0, 1, 2, 0])
    assert load_data(path).test.n_images == 4


def test_unwritable_cache_costs_nothing_but_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "occupied").write_text("a file, not a folder")
    for value in (str(tmp_path / "occupied"), ""):
        monkeypatch.setenv("AMC_CACHE_DIR", value)
        assert load_data(folder(tmp_path)).test.n_images == 9


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        ([0, 1, 5], ("a", "b", "c"), r"test split .* must lie in 0\.\.2 .*got 5"),
        ([0, 1, -1], None, r"test split .* must lie in 0\.\.2 .*got -1"),
        ([0, 1, 3], None, r"test split .* must lie in 0\.\.2 .*got 3"),
        ([0, None, 1], None, "whole numbers without gaps, got int64 with 1 empty"),
    ],
)
def test_labels_outside_the_classes_are_rejected(
    tmp_path: Path, labels: list[int | None], classes: tuple[str, ...] | None, message: str
) -> None:
    path = folder(tmp_path, classes=classes)
    write(path / "test-00000-of-00001.parquet", pictures(3), labels, classes=classes)
    with pytest.raises(InputDataError, match=message):
        load_data(path)


def test_unusable_images_are_rejected(tmp_path: Path) -> None:
    path = folder(tmp_path)
    file = path / "test-00000-of-00001.parquet"
    good = pictures(2)
    write(file, [*good, pictures(1, 0, (7, 6, 3))[0]], [0, 1, 2])
    with pytest.raises(InputDataError, match=r"Image 2 of the test split is 6 x 7 pixels.*6 x 6"):
        load_data(path)
    write(file, [*good, b"no picture"], [0, 1, 2])
    with pytest.raises(
        InputDataError, match="Image 2 of the test split is damaged or not an image"
    ):
        load_data(path)
    write(file, [good[0], png(good[1])[:60], good[1]], [0, 1, 2])
    with pytest.raises(InputDataError, match="Image 1 of the test split is damaged"):
        load_data(path)
    write(file, [*good, None], [0, 1, 2])
    with pytest.raises(InputDataError, match=r"Image 2 of .* has no bytes"):
        load_data(path)
    write(file, pictures(3, 0, (8, 8, 3)), [0, 1, 2])
    with pytest.raises(InputDataError, match=r"test split .* 8 x 8 .* train split 6 x 6"):
        load_data(path)


def test_missing_columns_splits_and_files_are_rejected(tmp_path: Path) -> None:
    path = folder(tmp_path)
    file = path / "test-00000-of-00001.parquet"
    write(file, pictures(3), [0, 1, 2], image="photo")
    with pytest.raises(InputDataError, match=r"no image column: expected img or image.*photo"):
        load_data(path)
    write(file, pictures(3), [0, 1, 2], label="answer")
    with pytest.raises(InputDataError, match="no label column: expected label or labels"):
        load_data(path)
    write(file, [], [])
    with pytest.raises(InputDataError, match=r"test split .* has no rows"):
        load_data(path)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(InputDataError, match="cannot be read as parquet"):
        load_data(path)
    file.unlink()
    with pytest.raises(InputDataError, match="has no test split: expected test"):
        load_data(path)
    with pytest.raises(InputDataError, match="is a file"):
        load_data(path / "train-00000-of-00001.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputDataError, match="holds no parquet files"):
        load_data(tmp_path / "empty")


@pytest.mark.parametrize("name", ["digitz", "./nowhere", "/no/such/folder", "a/b/c", ""])
def test_unknown_data_sets_are_rejected(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        InputDataError, match="expected 'digits', 'digit-scenes', an existing folder"
    ):
        load_data(name)


def test_hub_names_without_the_library_name_the_line_to_type(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(MissingDependencyError, match=r'pip install "amc-compress\[hub\]"'):
        load_data("uoft-cs/cifar10")


@pytest.mark.parametrize("size", [0, 30, 99])
def test_a_validation_split_without_training_images_is_rejected(tmp_path: Path, size: int) -> None:
    with pytest.raises(InputDataError, match="expected 1 to 29 images"):
        load_data(folder(tmp_path), validation_size=size)


def test_normalisation_must_fit_the_channels(tmp_path: Path) -> None:
    with pytest.raises(InputDataError, match="each of 3 channels"):
        load_data(folder(tmp_path), mean=(0.5,))
    with pytest.raises(InputDataError, match="positive std"):
        load_data(folder(tmp_path), std=(0.5, 0.0, 0.5))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 123.675])
def test_means_and_deviations_that_no_pixels_have_are_rejected(
    tmp_path: Path, value: float
) -> None:
    path = folder(tmp_path)
    for name, usual in (("mean", (0.5,) * 3), ("std", (0.25,) * 3)):
        values = (*usual[:2], value)
        with pytest.raises(InputDataError, match=f"--{name} as .* got {value:g}"):
            load_data(path, **{name: values})
        with pytest.raises(InputDataError, match=f"--{name} as .* got {value:g}"):
            RunConfig(**{name: values})
