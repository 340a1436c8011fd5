"""Hub data sets through a stand-in for the ``datasets`` library: no network in tests."""

from __future__ import annotations

import io
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from amc_compress.data import load_data
from amc_env.errors import InputDataError


def picture(value: int) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


class FakeSplit:
    """What the adapter uses of ``datasets.Dataset``."""

    def __init__(self, columns: dict[str, list[Any]], names: list[str] | None) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.features = {c: types.SimpleNamespace(names=names) for c in columns}

    def cast_column(self, column: str, feature: Any) -> FakeSplit:
        assert feature.decode is False
        return self

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, column: str) -> list[Any]:
        return self.columns[column]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for i in range(len(self)):
            yield {name: values[i] for name, values in self.columns.items()}


def split(start: int, n: int, label: str = "label", path: Path | None = None) -> FakeSplit:
    images = []
    for i in range(n):
        buffer = io.BytesIO()
        Image.fromarray(picture(start + i)).save(buffer, "PNG")
        entry: dict[str, Any] = {"bytes": buffer.getvalue(), "path": None}
        if path is not None:  # stored next to the table instead of inside
            file = path / f"{start + i}.png"
            file.write_bytes(buffer.getvalue())
            entry = {"bytes": None, "path": str(file)}
        images.append(entry)
    return FakeSplit({"image": images, label: [i % 2 for i in range(n)]}, ["no", "yes"])


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, str | None], dict[str, FakeSplit]]:
    sets: dict[tuple[str, str | None], dict[str, FakeSplit]] = {}

    def load_dataset(path: str, configuration: str | None) -> dict[str, FakeSplit]:
        if (path, configuration) not in sets:
            raise FileNotFoundError(f"Dataset '{path}' doesn't exist on the Hub\nmore lines")
        return sets[path, configuration]

    fake: Any = types.ModuleType("datasets")
    fake.load_dataset = load_dataset
    fake.Image = lambda decode: types.SimpleNamespace(decode=decode)
    monkeypatch.setitem(sys.modules, "datasets", fake)
    return sets


def test_hub_images_arrive_embedded_or_by_path(hub: Any, tmp_path: Path) -> None:
    hub["me/set", None] = {
        "train": split(0, 20), "valid": split(50, 6), "test": split(100, 4, path=tmp_path),
    }  # fmt: skip
    data = load_data("me/set")
    assert data.class_names == ("no", "yes")
    assert (data.train.n_images, data.validation.n_images) == (20, 6)
    assert data.test.pixels[:, 0, 0, 0].tolist() == [100, 101, 102, 103]
    assert data.test.labels.tolist() == [0, 1, 0, 1]


def test_a_configuration_follows_a_colon(hub: Any) -> None:
    hub["me/set", "small"] = {"train": split(0, 20), "test": split(100, 4)}
    assert load_data("me/set:small").validation.n_images == 2


def test_columns_of_any_name_can_be_chosen(hub: Any) -> None:
    hub["me/set", None] = {"train": split(0, 20, label="kind"), "valid": split(50, 6, label="kind")}
    data = load_data("me/set", image_column="image", label_column="kind")
    assert (data.validation.n_images, data.test.n_images) == (2, 6)
    assert any("no test split" in note for note in data.notes)


def test_bad_hub_sets_are_rejected_in_one_sentence(hub: Any) -> None:
    with pytest.raises(InputDataError, match=r"'me/none' cannot be loaded .* exist on the Hub; "):
        load_data("me/none")
    hub["me/set", None] = {"train": split(0, 4)}
    with pytest.raises(InputDataError, match="has no test split"):
        load_data("me/set")
    hub["me/set", None] = {"train": split(0, 20), "test": split(0, 4)}
    hub["me/set", None]["test"].columns["image"][2] = None
    with pytest.raises(InputDataError, match="test split of me/set has a row without an image"):
        load_data("me/set")
    hub["me/set", None] = {"train": split(0, 4, label="text"), "test": split(0, 4)}
    with pytest.raises(InputDataError, match=r"no label column: expected label or labels"):
        load_data("me/set")
