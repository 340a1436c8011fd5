"""Scenes of digits: boxes and masks that belong to the pixels, the same ones every time."""

import numpy as np
import pytest
import sklearn.datasets
import torch
from torch import Tensor

from amc_compress.data import DataSplits, load_data
from amc_compress.data.scenes import CLASS_NAMES, Scenes, digit_scenes
from amc_compress.data.sources import embedded
from amc_env import InputDataError


@pytest.fixture(scope="module")
def scenes() -> Scenes:
    bunch = sklearn.datasets.load_digits()
    return digit_scenes(bunch.images, bunch.target, 60, seed=3)


@pytest.fixture(scope="module")
def splits() -> DataSplits:
    return load_data("digit-scenes", task="detection", batch_size=50)


def every(scenes: Scenes) -> Tensor:
    return torch.arange(len(scenes.pixels))


def test_a_box_is_the_extent_of_its_digit_and_nothing_lies_outside(scenes: Scenes) -> None:
    for mask, target in zip(scenes.masks, scenes.boxes[every(scenes)], strict=True):
        left = mask.clone()
        for (x0, y0, x1, y1), label in zip(
            target["boxes"].long().tolist(), target["labels"].tolist(), strict=True
        ):
            inside = mask[y0:y1, x0:x1]
            assert set(inside.unique().tolist()) <= {0, label}
            for edge in (inside[0], inside[-1], inside[:, 0], inside[:, -1]):
                assert (edge == label).any()
            left[y0:y1, x0:x1] = 0
        assert not left.any()


def test_digits_are_brighter_than_the_ground_around_them(scenes: Scenes) -> None:
    for pixels, mask in zip(scenes.pixels[:, 0].float(), scenes.masks, strict=True):
        if mask.any():
            assert pixels[mask > 0].mean() > pixels[mask == 0].mean() + 25


def test_scenes_differ_in_number_size_and_class(scenes: Scenes) -> None:
    targets = scenes.boxes[every(scenes)]
    assert {len(target["labels"]) for target in targets} == set(range(6))
    assert set(scenes.boxes.labels.tolist()) == set(range(1, 11))
    heights = scenes.boxes.boxes[:, 3] - scenes.boxes.boxes[:, 1]
    assert heights.min() < 16
    assert heights.max() > 25


def test_the_seed_decides_all() -> None:
    bunch = sklearn.datasets.load_digits()
    same = [digit_scenes(bunch.images, bunch.target, 5, seed) for seed in (1, 1, 2)]
    assert torch.equal(same[0].pixels, same[1].pixels)
    assert torch.equal(same[0].masks, same[1].masks)
    assert torch.equal(same[0].boxes.boxes, same[1].boxes.boxes)
    assert not torch.equal(same[0].pixels, same[2].pixels)


def test_no_digit_is_in_two_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[set[bytes]] = []

    def noted(digits: np.ndarray, classes: np.ndarray, count: int, seed: int) -> Scenes:
        drawn.append({digit.tobytes() for digit in digits})
        return digit_scenes(digits, classes, 1, seed)

    monkeypatch.setattr(embedded, "digit_scenes", noted)
    embedded._scenes.__wrapped__()
    assert len(drawn) == 3
    assert sum(map(len, drawn)) == len(set.union(*drawn)) == 1797


def test_boxes_come_as_torchvision_takes_them(splits: DataSplits) -> None:
    images, targets = next(iter(splits.train))
    assert images.shape == (50, 1, 64, 64)
    assert isinstance(targets, list)
    assert len(targets) == 50
    for target in targets:
        boxes, labels = target["boxes"], target["labels"]
        assert boxes.dtype == torch.float32
        assert labels.dtype == torch.int64
        assert boxes.shape == (len(labels), 4)
        assert bool((boxes[:, :2] < boxes[:, 2:]).all())
        assert 0 <= boxes.min() <= boxes.max() <= 64 if len(boxes) else True
    assert splits.task == "detection"
    assert splits.class_names == CLASS_NAMES
    assert splits.n_classes == 11


def test_shuffled_boxes_and_masks_stay_with_their_images(splits: DataSplits) -> None:
    masked = load_data("digit-scenes", task="segmentation", batch_size=50)
    assert masked.task == "segmentation"
    (images, targets), (same, masks) = next(iter(splits.train)), next(iter(masked.train))
    assert torch.equal(images, same)
    assert masks.shape == (50, 64, 64)
    assert masks.dtype == torch.int64
    for mask, target in zip(masks, targets, strict=True):
        present = set(mask.unique().tolist()) - {0}
        assert present == set(target["labels"].tolist())


def test_splits_are_what_they_are_whatever_the_seed(splits: DataSplits) -> None:
    other = load_data("digit-scenes:boxes", seed=7, validation_size=50)
    assert [data.n_images for data in (splits.train, splits.validation, splits.test)] == [
        2400, 400, 600,
    ]  # fmt: skip
    assert torch.equal(splits.test.pixels, other.test.pixels)
    assert other.validation.n_images == len(other.validation.labels) == 50
    known = {pixels.numpy().tobytes() for pixels in splits.validation.pixels}
    assert all(pixels.numpy().tobytes() in known for pixels in other.validation.pixels)


def test_it_is_said_which_labels_are_taken() -> None:
    data = load_data("digit-scenes")
    assert data.task == "detection"
    assert data.notes == (
        "the boxes of digit-scenes, for detection; --task segmentation takes the masks",
    )
    assert load_data("digit-scenes", task="detection").notes == ()
    assert load_data("digit-scenes:masks").notes == ()
    assert load_data("digit-scenes:masks").task == "segmentation"


@pytest.mark.parametrize(
    ("name", "more", "match"),
    [
        ("digit-scenes:lines", {}, "Unknown labels 'lines'.*expected digit-scenes:boxes"),
        ("digit-scenes:boxes", {"task": "segmentation"}, "needs the masks.*leave out :boxes"),
        ("digit-scenes", {"image_size": 32}, "images of one size.*leave out --image-size"),
    ],
)
def test_what_scenes_do_not_have(name: str, more: dict, match: str) -> None:
    with pytest.raises(InputDataError, match=match):
        load_data(name, **more)
