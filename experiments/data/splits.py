"""Train, calibration, validation and test images by name, cut the same way every time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import sklearn.datasets
import torch
from torch import Tensor

from amc_env.errors import InputDataError
from experiments.data.hub import read_hub
from experiments.data.loader import Augmentation, Normalisation, TensorLoader
from experiments.data.parquet import RawSplit, read_folder

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_DIGITS_TEST = 360  # a fifth of the 1,797 images


@dataclass(frozen=True)
class DataSplits:
    """One data set, cut.

    The test images are for the last line of a report. Search validates on ``validation``, which
    shares no image with ``train``; ``calibration`` is a part of ``train``, neither shuffled nor
    augmented.
    """

    name: str
    train: TensorLoader
    calibration: TensorLoader
    validation: TensorLoader
    test: TensorLoader
    n_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]


def load_data(
    name_or_path: str | Path,
    *,
    batch_size: int = 128,
    seed: int = 0,
    validation_size: int | None = None,
    validation_split: Literal["random", "tail"] = "random",
    augment: bool = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibration_size: int = 1000,
    split_seed: int = 0,
    flip: bool | None = None,
    progress: bool | None = None,
) -> DataSplits:
    """Load an image-classification data set into memory.

    Args:
        name_or_path: ``"digits"`` (scikit-learn's, 8 x 8), a folder of parquet files with the
            Hugging Face schema, or a name on its hub (``owner/name``, needs the ``hub`` extra).
        batch_size: Images in a batch.
        seed: Order and augmentation of the training batches. It does not move the splits, so that
            runs with different seeds are judged on the same images.
        validation_size: Images cut from the training data for validation; None takes a fifth for
            digits and a tenth otherwise, and all of the data set's own validation split
            where it has one.
        validation_split: ``"random"`` cuts them at random, equally from all classes; ``"tail"``
            takes the last rows.
        augment: Shift (by an eighth of the size) and mirror the training images.
        mean: Normalisation of each channel, in units of the largest pixel value. The default
            is ImageNet's for three channels and 0.5 for one.
        std: As ``mean``.
        calibration_size: Training images that calibrate; fewer where there are fewer.
        split_seed: Seed of the random cuts.
        flip: Mirror training images; None mirrors colour images only.
        progress: Show a progress bar while images are decoded; None shows it on a terminal.

    Raises:
        InputDataError: The name is unknown, or the data are not what they should be.
        MissingDependencyError: A hub name without the ``datasets`` library.
    """
    name = str(name_or_path)
    raw, scale = _read(name, progress)
    class_names = _class_names(raw, name)
    shape = _check_shapes(raw, name)
    generator = torch.Generator().manual_seed(split_seed)
    splits = _cut_all(raw, name, validation_size, validation_split, calibration_size, generator)
    normalisation = _normalisation(shape[0], scale, mean, std)
    augmentation = _augmentation(shape, flip) if augment else None
    loaders = _loaders(splits, normalisation, batch_size, augmentation, seed)
    return DataSplits(
        name, **loaders, n_classes=len(class_names), image_shape=shape, class_names=class_names
    )


def _loaders(
    splits: dict[str, RawSplit],
    normalisation: Normalisation,
    batch_size: int,
    augmentation: Augmentation | None,
    seed: int,
) -> dict[str, TensorLoader]:
    """Batches of each split; only those to train on are shuffled and augmented."""
    training: dict[str, Any] = {"shuffle": True, "augmentation": augmentation, "seed": seed}
    return {
        key: TensorLoader(
            split.pixels,
            split.labels,
            normalisation,
            batch_size=batch_size,
            **(training if key == "train" else {}),
        )
        for key, split in splits.items()
    }


def _read(name: str, progress: bool | None) -> tuple[dict[str, RawSplit], float]:
    """The splits, and the largest pixel value."""
    if name == "digits":
        return _digits(), 16.0
    folder = Path(name).expanduser()
    if name and folder.is_dir():  # Path("") is the current folder
        return read_folder(folder, progress), 255.0
    if folder.is_file():
        raise InputDataError(
            f"{name} is a file: expected the folder that holds train*.parquet and test*.parquet."
        )
    owner, _, rest = name.partition("/")
    if owner in ("", ".", "..", "~") or not rest or "/" in rest:
        raise InputDataError(
            f"Unknown data set {name!r}: expected 'digits', an existing folder of parquet files, "
            "or a name on the Hugging Face hub such as 'uoft-cs/cifar10'."
        )
    return read_hub(name, progress), 255.0


def _digits() -> dict[str, RawSplit]:
    """Scikit-learn's 1,797 digits; the same 360 are the test images whatever the seeds."""
    bunch = sklearn.datasets.load_digits()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    whole = RawSplit(pixels, labels, tuple(str(name) for name in bunch.target_names))
    generator = torch.Generator().manual_seed(0)
    train, test = _cut(labels, _DIGITS_TEST, "random", generator)
    return {"train": _take(whole, train), "test": _take(whole, test)}


def _cut_all(
    raw: dict[str, RawSplit],
    name: str,
    validation_size: int | None,
    how: Literal["random", "tail"],
    calibration_size: int,
    generator: torch.Generator,
) -> dict[str, RawSplit]:
    """The four splits; no image of ``validation`` is in ``train``, all of ``calibration`` are."""
    train = raw["train"]
    if "validation" in raw:
        validation = raw["validation"]
        if validation_size is not None:
            _, chosen = _cut(validation.labels, validation_size, how, generator)
            validation = _take(validation, chosen)
    else:
        if validation_size is None:
            validation_size = _DIGITS_TEST - 1 if name == "digits" else len(train.labels) // 10
        rest, chosen = _cut(train.labels, validation_size, how, generator)
        train, validation = _take(train, rest), _take(train, chosen)
    order = torch.randperm(len(train.labels), generator=generator)
    return {
        "train": train,
        "calibration": _take(train, order[: max(1, calibration_size)].sort().values),
        "validation": validation,
        "test": raw["test"],
    }


def _augmentation(shape: tuple[int, int, int], flip: bool | None) -> Augmentation:
    mirrored = shape[0] == 3 if flip is None else flip
    return Augmentation(pad=max(1, round(shape[2] / 8)), flip=mirrored)


def _class_names(raw: dict[str, RawSplit], name: str) -> tuple[str, ...]:
    """The classes, by number if nameless; every label of every split must be one of them."""
    train = raw["train"]
    class_names = train.class_names or tuple(map(str, range(int(train.labels.max()) + 1)))
    n_classes = len(class_names)
    for split, data in raw.items():
        low, high = int(data.labels.min()), int(data.labels.max())
        if low < 0 or high >= n_classes:
            raise InputDataError(
                f"The labels of the {split} split of {name} must lie in 0..{n_classes - 1} "
                f"({n_classes} classes), got {low if low < 0 else high}: correct the labels or the "
                "list of classes."
            )
    return class_names


def _check_shapes(raw: dict[str, RawSplit], name: str) -> tuple[int, int, int]:
    _, channels, height, width = raw["train"].pixels.shape
    for split, data in raw.items():
        if data.pixels.shape[1:] != (channels, height, width):
            raise InputDataError(
                f"The images of the {split} split of {name} are {_describe(data.pixels)}, those of "
                f"the train split {_describe(raw['train'].pixels)}: convert them to one size."
            )
    return channels, height, width


def _describe(pixels: Tensor) -> str:
    _, channels, height, width = pixels.shape
    return f"{width} x {height} pixels with {channels} channel{'s' if channels > 1 else ''}"


def _normalisation(
    channels: int, scale: float, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalisation:
    colour = channels == 3
    mean = tuple(mean) if mean is not None else (IMAGENET_MEAN if colour else (0.5,) * channels)
    std = tuple(std) if std is not None else (IMAGENET_STD if colour else (0.5,) * channels)
    if len(mean) != channels or len(std) != channels or min(std) <= 0:
        raise InputDataError(
            f"Expected a mean and a positive std for each of {channels} channels, got mean {mean} "
            f"and std {std}."
        )
    return Normalisation(scale, mean, std)


def _cut(
    labels: Tensor, size: int, how: Literal["random", "tail"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Indices of (the rest, the ``size`` chosen), both ascending."""
    total = len(labels)
    if not 0 < size < total:
        raise InputDataError(
            f"The validation split must leave training images: expected 1 to {total - 1} images, "
            f"got {size}."
        )
    if how == "tail":
        return torch.arange(total - size), torch.arange(total - size, total)
    if how != "random":
        raise ValueError(f"validation_split must be 'random' or 'tail', got {how!r}.")
    # Sorting the shuffled images by their rank within their class, relative to the class's size,
    # spreads every class evenly over the order; any prefix is stratified.
    order = torch.randperm(total, generator=generator)
    position = torch.empty(total, dtype=torch.float64)
    for label in range(int(labels.max()) + 1):
        members = order[labels[order] == label]  # possibly none
        position[members] = (torch.arange(len(members)) + 0.5).double() / len(members)
    chosen = order[position[order].argsort(stable=True)][:size].sort().values
    mask = torch.ones(total, dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().squeeze(1), chosen


def _take(split: RawSplit, indices: Tensor) -> RawSplit:
    return RawSplit(split.pixels[indices], split.labels[indices], split.class_names)
