"""``--data package.module:factory``: loaders, lists and data sets of the user's own."""

from __future__ import annotations

import random
import sys
import types
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from amc_compress.config.texts import is_factory
from amc_compress.data.batches import collate_samples, to_batches
from amc_compress.data.factories import own_loaders
from amc_compress.learners.training.data_checks import seeded
from amc_env import InputDataError

IMAGES, LABELS = torch.arange(12.0).view(6, 1, 1, 2), torch.arange(6)
SAMPLES = TensorDataset(IMAGES, LABELS)
LOADER = DataLoader(SAMPLES, 4)
LIST = [(IMAGES[:3], LABELS[:3]), (IMAGES[3:], LABELS[3:])]


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], str]:
    """Returns the reference of a factory that returns a value, or of the value if it is one."""

    def made(value: Any) -> str:
        module = types.ModuleType("somebodys_data")
        module.make = value if callable(value) else lambda: value  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "somebodys_data", module)
        return "somebodys_data:make"

    return made


@pytest.mark.parametrize(
    "given",
    [
        (LOADER, LIST, LOADER),
        [LOADER, LIST, LOADER],
        {"train": LOADER, "val": LIST, "test": LOADER},
        {"training": LOADER, "validation": LIST, "testing": LOADER},
    ],
)
def test_loaders_are_taken_as_they_are(given: Any, factory: Callable[[Any], str]) -> None:
    own = own_loaders(factory(given), batch_size=2, seed=0)
    assert own.train is LOADER
    assert own.validation is LIST
    assert own.test is LOADER
    assert own.calibration is None
    assert own.notes == ()


def test_data_sets_are_batched_and_only_training_shuffles(factory: Callable[[Any], str]) -> None:
    reference = factory((SAMPLES, SAMPLES))
    own, again = (own_loaders(reference, batch_size=4, seed=3) for _ in range(2))
    assert own.test is None
    validated = [labels.tolist() for _, labels in own.validation]
    assert validated == [[0, 1, 2, 3], [4, 5]]
    assert own.calibration is not None
    assert [labels.tolist() for _, labels in own.calibration] == validated
    trained = [labels.tolist() for _, labels in own.train]
    assert trained != validated
    assert sorted(label for batch in trained for label in batch) == list(range(6))
    assert trained == [labels.tolist() for _, labels in again.train]


def test_a_lone_last_sample_is_not_trained_on(factory: Callable[[Any], str]) -> None:
    own = own_loaders(factory((SAMPLES, SAMPLES)), batch_size=5, seed=0)
    assert [len(labels) for _, labels in own.train] == [5]
    assert [len(labels) for _, labels in own.validation] == [5, 1]


@pytest.mark.parametrize(("size", "expected"), [(60, 8), (1437, 28), (50_000, 128)])
def test_small_data_sets_have_steps_enough_in_an_epoch(
    factory: Callable[[Any], str], size: int, expected: int
) -> None:
    samples = TensorDataset(torch.zeros(size, 1), torch.zeros(size, dtype=torch.long))
    own = own_loaders(factory((samples, samples)), batch_size=None, seed=0)
    assert isinstance(own.train, DataLoader)
    assert isinstance(own.validation, DataLoader)
    assert own.train.batch_sampler.batch_size == expected
    assert own.validation.batch_sampler.batch_size == 128


def test_a_batch_size_that_is_not_asked_for_is_the_factorys_own(
    factory: Callable[[Any], str],
) -> None:
    asked = []

    def make(batch_size: int = 3) -> Any:
        asked.append(batch_size)
        return DataLoader(SAMPLES, batch_size), LIST

    def without_default(batch_size: int) -> Any:
        return make(batch_size)

    for function, size in ((make, None), (make, 2), (without_default, None)):
        own_loaders(factory(function), batch_size=size, seed=0)
    assert asked == [3, 2, 128]


def test_factories_get_the_keywords_they_name(factory: Callable[[Any], str]) -> None:
    def make(batch_size: int, other: int = 1) -> Any:
        return DataLoader(SAMPLES, batch_size), LIST

    own = own_loaders(factory(make), batch_size=2, seed=0)
    assert isinstance(own.train, DataLoader)
    assert own.train.batch_sampler.batch_size == 2


def test_other_splits_are_left_out_and_said(factory: Callable[[Any], str]) -> None:
    own = own_loaders(
        factory({"train": LIST, "validation": LIST, "extra": LIST}), batch_size=2, seed=0
    )
    assert own.notes == ("splits of other names are left out: 'extra'",)


class _Hub:
    """Looks like a ``datasets.Dataset`` with a transform: rows are dictionaries, no torch class."""

    __module__ = "datasets.arrow_dataset"

    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"pixel_values": torch.full((1, 2, 2), float(index)), "labels": index}

    def __iter__(self) -> Iterator[dict[str, Any]]:  # single samples, no batches
        yield from (self[index] for index in range(3))


def test_hub_data_sets_with_a_transform_are_batched(factory: Callable[[Any], str]) -> None:
    own = own_loaders(factory({"train": _Hub(), "validation": _Hub()}), batch_size=2, seed=0)
    first, last = own.validation
    assert first["pixel_values"].shape == (2, 1, 2, 2)
    assert first["labels"].tolist() == [0, 1]
    assert last["labels"].tolist() == [2]


def scene(side: int, count: int) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    return torch.zeros(1, side, side), {"boxes": torch.zeros(count, 4), "labels": torch.ones(count)}


def test_boxes_stay_a_list_and_images_of_one_size_are_stacked() -> None:
    images, targets = collate_samples([scene(4, 2), scene(4, 0)])
    assert images.shape == (2, 1, 4, 4)
    assert [len(target["boxes"]) for target in targets] == [2, 0]
    images, targets = collate_samples([scene(4, 2), scene(5, 1)])
    assert [image.shape[-1] for image in images] == [4, 5]
    assert len(targets) == 2


class _Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        yield from LIST


def test_iterable_data_sets_are_loaders() -> None:
    data = _Endless()
    assert to_batches(data, "the data", batch_size=2) is data


class _Pictures(TensorDataset):
    def __getitem__(self, index: int) -> Any:
        return object(), 1


class _Empty(TensorDataset):
    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (iter(LIST), "read again and again, got a list_iterator.*pass list"),
        (3, "a DataLoader, a list of batches or a data set, got int: wrap it"),
        (IMAGES, "got Tensor: wrap it"),
        ({"images": IMAGES}, "got dict: wrap it"),
        (_Pictures(IMAGES), "cannot be batched.*give the data set a transform"),
        (_Empty(IMAGES), "Expected samples in the data, got an empty _Empty"),
    ],
)
def test_what_is_no_loader_is_said_in_one_sentence(data: object, match: str) -> None:
    with pytest.raises(InputDataError, match=match):
        to_batches(data, "the data", batch_size=2)


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (LOADER, "to return .train, validation.*got DataLoader"),
        ((LOADER,), "got tuple of 1"),
        ({"train": LIST}, "got no validation data"),
        ((None, None), "got no train and no validation data"),
        ({"train": LIST, "val": LIST, "dev": LIST}, "got two of validation: 'train', 'val', 'dev'"),
        ((iter(LIST), LIST), "the training data of somebodys_data:make as a loader that can be"),
        (lambda path: (LIST, LIST), "cannot be called with no keywords: missing.*'path'"),
    ],
)
def test_factories_that_return_something_else(
    value: Any, match: str, factory: Callable[[Any], str]
) -> None:
    with pytest.raises(InputDataError, match=match):
        own_loaders(factory(value), batch_size=2, seed=0)


def test_what_is_no_function_is_rejected() -> None:
    with pytest.raises(InputDataError, match="data 'sys:path' to be a function that returns"):
        own_loaders("sys:path", batch_size=2, seed=0)


def test_folders_with_a_configuration_are_no_factories(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert is_factory("pets:small")
    (tmp_path / "pets").mkdir()
    assert not is_factory("pets:small")
    assert not any(map(is_factory, ("digits", "digit-scenes:masks", "owner/name:small", "./a:b")))


class _Drawn(Dataset[tuple[Tensor, int]]):
    """Samples with what their transforms draw."""

    def __len__(self) -> int:
        return 30

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        drawn = [torch.rand(()).item(), random.random(), np.random.rand()]  # noqa: NPY002
        return torch.tensor(drawn), index


def alike(first: list[Any], second: list[Any]) -> bool:
    pairs = zip(first, second, strict=True)
    return all(torch.equal(a, b) for x, y in pairs for a, b in zip(x, y, strict=True))


def test_the_batches_of_a_data_set_are_those_of_its_seed() -> None:
    before = torch.get_rng_state(), random.getstate()
    passes = []
    for workers in (0, 2):
        loader: Any = to_batches(_Drawn(), "it", batch_size=8, shuffle=True, workers=workers)
        for epoch in (0, 1, 0):
            with seeded(loader, 3, epoch):
                passes.append(list(loader))
    first, other, *_ = passes
    assert all(alike(first, passes[n]) for n in (2, 3, 5))
    assert not alike(first, other)
    assert len(torch.cat([drawn for drawn, _ in first]).unique()) == 90
    with seeded(loader, 3, 0):
        assert alike(list(loader.from_batch(2)), first[2:])
    assert torch.equal(torch.get_rng_state(), before[0])
    assert random.getstate() == before[1]
    plain = DataLoader(_Drawn(), 8, shuffle=True, generator=torch.Generator())
    with seeded(plain, 3, 0):  # the order is that of torch's own loader
        assert [batch[1].tolist() for batch in plain] == [batch[1].tolist() for batch in first]
