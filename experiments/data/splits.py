"""Train, calibration, validation and test images by name, cut the same way every time."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from amc_compress.config.values import check_normalisation
from amc_compress.data.augmenting.choice import check_words, chosen_augmentation
from amc_compress.data.copies import are_in, repeated
from amc_compress.data.decoding import decode_splits
from amc_compress.data.labels import number_labels
from amc_compress.data.loader import TensorLoader
from amc_compress.data.raw import Pixels, RawSplit, Whole, cut
from amc_compress.data.sources.embedded import (
    DIGITS,
    DIGITS_VALIDATION,
    is_embedded,
    read_embedded,
)
from amc_compress.data.sources.folders import read_folder
from amc_compress.data.sources.hub import read_hub
from amc_compress.data.sources.stored import Columns, StoredData
from amc_compress.data.streaming.memory import usual_memory
from amc_compress.data.streaming.pixels import StreamedPixels, centre
from amc_compress.learners.networks.normalisation import Normalisation
from amc_env.errors import InputDataError
from amc_env.validation.checks import shown
from amc_env.validation.sentences import counted

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
_MARGIN = 256 / 224  # of images for --image-size, scaled to this times the crop: as for ImageNet


@dataclass(frozen=True)
class DataSplits:
    """One data set, cut.

    The test images are for the last line of a report. Search validates on ``validation``, which
    shares no image with ``train``; ``calibration`` is a part of ``train``, neither shuffled nor
    augmented. ``notes`` says in sentences what was chosen, mapped, or left out on the way, and
    ``task`` what the labels are for, as ``--task`` names it.
    """

    name: str
    train: TensorLoader
    calibration: TensorLoader
    validation: TensorLoader
    test: TensorLoader
    n_classes: int
    image_shape: tuple[int, int, int]
    class_names: tuple[str, ...]
    notes: tuple[str, ...] = ()
    task: str = "classification"
    has_test: ClassVar[bool] = True

    @property
    def example(self) -> Tensor:
        """One image as networks take it, shape (1, C, H, W)."""
        return self.calibration.first(1)

    @property
    def content(self) -> Mapping[str, str]:
        """Empty: data with a name are known by it."""
        return {}


def load_data(
    name_or_path: str | Path,
    *,
    batch_size: int = 128,
    seed: int = 0,
    validation_size: int | None = None,
    validation_split: Literal["random", "tail"] = "random",
    augment: bool | Sequence[str] = True,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    calibration_size: int = 1000,
    split_seed: int = 0,
    flip: bool | None = None,
    progress: bool | None = None,
    image_size: int | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    task: str | None = None,
    memory: int | None = None,
    workers: int = 0,
) -> DataSplits:
    """Load a data set of images; what is too large for the memory is streamed.

    Args:
        name_or_path: ``"digits"`` (scikit-learn's, 8 x 8); ``"digit-scenes"`` (several of them
            on 64 x 64, with boxes and masks); a folder of parquet or Arrow files with
            the Hugging Face schema, of ``save_to_disk``, of tar shards, or with a folder of images
            per class; or a name on the hub (``owner/name``, needs the ``hub`` extra). ``:name``
            behind it chooses one of several configurations.
        batch_size: Images in a batch.
        seed: Order and augmentation of the training batches. It does not move the splits, so that
            runs with different seeds are evaluated on the same images.
        validation_size: Images cut from the training data for validation; None takes a fifth for
            digits and a tenth otherwise, and all of the data set's own validation split
            where it has one.
        validation_split: ``"random"`` cuts them at random, equally from all classes; ``"tail"``
            takes the last rows.
        augment: What is done to the training images, in the words of ``--augment``. True stands
            for ``standard``: shift (by an eighth of the size) and mirror; False for ``none``.
        mean: Normalisation of each channel, in units of the largest pixel value. The default
            is ImageNet's for three channels and 0.5 for one.
        std: As ``mean``.
        calibration_size: Training images that calibrate; fewer where there are fewer.
        split_seed: Seed of the random cuts.
        flip: Mirror training images; None mirrors colour images only.
        progress: Show a progress bar while images are decoded; None shows it on a terminal.
        image_size: Side of the images in pixels, for those of several sizes: the shorter side is
            scaled to 256/224 of it, and the middle is evaluated; what is trained on is a random
            part of the middle square, scaled, instead of a shifted image. None takes images as
            they are.
        image_column: Column of a table with the images; None takes "img" or "image".
        label_column: Column with the labels; None takes "label", "labels" or "fine_label".
        task: What the data are for, as ``--task`` names it: chooses among the labels of scenes.
        memory: Bytes that decoded images may take; None for half of the machine's memory. Where
            they need more, the calibration and the validation images are held as long as they fit,
            all others are decoded anew for each batch. The batches are the same either way.
        workers: Processes that decode and augment images; 0 for none but this one. The batches
            are the same whatever their number.

    Raises:
        InputDataError: The name is unknown, or the data are not what they should be.
        MissingDependencyError: A hub name without the ``datasets`` library, or an augmentation
            without torchvision.
    """
    name = str(name_or_path)
    words = _words(augment)
    check_words(words)
    memory = usual_memory() if memory is None else memory
    columns = Columns(image_column, label_column)
    whole = _read(name, columns, image_size, progress, task, memory, workers)
    channels, height, width = _check_shapes(whole.splits, name)
    normalisation = _normalisation(channels, whole.scale, mean, std)
    generator = torch.Generator().manual_seed(split_seed)
    splits = _cut_all(whole, name, validation_size, validation_split, calibration_size, generator)
    shape = (channels, height, width)
    chosen = chosen_augmentation(words, whole, shape, flip, image_size)
    splits = _preloaded(splits, image_size, memory, workers, progress)
    training: dict[str, Any] = {"shuffle": True, "seed": seed, **chosen}
    loaders = {
        key: TensorLoader(
            split.pixels,
            split.labels,
            normalisation,
            batch_size=batch_size,
            size=image_size,
            workers=workers,
            **(training if key == "train" else {}),
        )
        for key, split in splits.items()
    }
    return DataSplits(
        name,
        **loaders,
        n_classes=len(whole.class_names),
        image_shape=(channels, image_size or height, image_size or width),
        class_names=whole.class_names,
        notes=tuple(whole.notes),
        task=whole.task,
    )


def _words(augment: bool | Sequence[str]) -> tuple[str, ...]:
    if isinstance(augment, bool):
        return ("standard",) if augment else ("none",)
    return (augment,) if isinstance(augment, str) else tuple(augment)


def _preloaded(
    splits: dict[str, RawSplit],
    size: int | None,
    memory: int,
    workers: int,
    progress: bool | None,
) -> dict[str, RawSplit]:
    """The splits with what is read again and again in memory, as far as it fits, and cropped."""
    made = dict(splits)
    for key in ("calibration", "validation", "test"):
        pixels: Pixels = splits[key].pixels
        if isinstance(pixels, StreamedPixels):
            count, channels, height, width = pixels.shape
            needed = count * channels * (size or height) * (size or width)
            if needed > memory or key == "test":  # read once
                continue
            memory -= needed
            pixels = pixels.held(size, workers, progress)
        else:
            pixels = centre(pixels, size).contiguous()
        made[key] = replace(splits[key], pixels=pixels)
    return made


def _read(
    name: str,
    columns: Columns,
    image_size: int | None,
    progress: bool | None,
    task: str | None,
    memory: int,
    workers: int,
) -> Whole:
    """The data set with its labels numbered and its images decoded, cut as it is stored."""
    if is_embedded(name):
        if image_size is not None or columns != Columns():
            raise InputDataError(
                f"The embedded data set {name} has images of one size and no table: leave out "
                f"--image-size, --image-column and --label-column, or give a data set of yours."
            )
        return read_embedded(name, task)
    stored = _find(name, columns)
    numbered = number_labels({key: split.labels for key, split in stored.splits.items()})
    size = None if image_size is None else round(image_size * _MARGIN)
    decoded, notes = decode_splits(stored.splits, size, progress, memory=memory, workers=workers)
    splits = {
        key: RawSplit(images.pixels, numbered.labels[key], images.digests)
        for key, images in decoded.items()
    }
    whole = Whole(splits, numbered.class_names, [*stored.notes, *numbered.notes, *notes])
    if "test" not in splits:
        _cut_test(whole)
    return whole


def _find(name: str, columns: Columns) -> StoredData:
    """The stored data of a name: a folder, or a data set of the hub."""
    # By os.path, to which a name that no path can have is just not there.
    folder, configuration = Path(name).expanduser(), ""
    if not os.path.exists(folder) and ":" in name:
        path, _, wanted = name.rpartition(":")
        if path and os.path.isdir(Path(path).expanduser()):
            folder, configuration = Path(path).expanduser(), wanted
    if name and os.path.isdir(folder):  # Path("") is the current folder
        return read_folder(folder, configuration, columns)
    if os.path.isfile(folder):
        raise InputDataError(
            f"{name} is a file: expected the folder that holds train*.parquet and test*.parquet."
        )
    owner, _, rest = name.partition("/")
    if owner in ("", ".", "..", "~") or not rest or "/" in rest:
        raise InputDataError(
            f"Unknown data set {shown(name)}: expected 'digits', 'digit-scenes', an existing "
            "folder of parquet files or of class folders, or a name on the Hugging Face hub such "
            "as 'uoft-cs/cifar10'."
        )
    return read_hub(name, columns)


def _cut_test(whole: Whole) -> None:
    """Cuts test images from a data set that is one piece: the same ones whatever the seeds."""
    images = whole.splits["train"]
    size = len(images.labels) // 5
    rest, chosen = cut(images.classes, size, "random", torch.Generator().manual_seed(0))
    test = whole.splits["test"] = images.taken(chosen)
    train = _without_copies(images.taken(rest), test, "test", whole.notes)
    whole.splits["train"] = train
    whole.notes.append(
        f"nothing names a split: {size:,} of {len(images.labels):,} images, drawn equally from all "
        f"classes and always the same, are the test set"
    )


def _without_copies(train: RawSplit, held_out: RawSplit, name: str, notes: list[str]) -> RawSplit:
    """Training images without those that are held out as well."""
    copies = are_in(train.digests, held_out.digests)
    count = int(copies.sum())
    if not count:
        return train
    if count == len(copies):
        raise InputDataError(
            f"Every training image is also a {name} image, pixel for pixel: expected different "
            f"images; remove the copies."
        )
    notes.append(
        f"{counted(count, 'training image')} also in {name}, pixel for pixel: left out of training"
    )
    return train.taken((~copies).nonzero().squeeze(1))


def _note_copies(splits: dict[str, RawSplit], notes: list[str]) -> None:
    """Reports duplicate images that are kept."""
    train = splits["train"]
    if count := repeated(train.digests):
        pairs = np.unique(torch.stack([train.digests, train.classes], 1).numpy(), axis=0)
        other = len(pairs) - (len(train.digests) - count)
        more = f" ({other:,} with another label)" if other else ""
        notes.append(f"{counted(count, 'training image')} repeated{more}: left in")
    for name in ("training", "validation"):
        known = splits["train" if name == "training" else name]
        if count := int(are_in(splits["test"].digests, known.digests).sum()):
            notes.append(f"{counted(count, 'test image')} also in {name}: left in")


def _cut_all(
    whole: Whole,
    name: str,
    validation_size: int | None,
    how: Literal["random", "tail"],
    calibration_size: int,
    generator: torch.Generator,
) -> dict[str, RawSplit]:
    """The four splits; no image of ``validation`` is in ``train``, all of ``calibration`` are."""
    raw, train = whole.splits, whole.splits["train"]
    if "validation" in raw:
        validation = raw["validation"]
        if validation_size is not None:
            _, chosen = cut(validation.classes, validation_size, how, generator)
            validation = validation.taken(chosen)
    else:
        if validation_size is None:
            validation_size = (
                DIGITS_VALIDATION if name == DIGITS else max(1, len(train.labels) // 10)
            )
        rest, chosen = cut(train.classes, validation_size, how, generator)
        train, validation = train.taken(rest), train.taken(chosen)
    train = _without_copies(train, validation, "validation", whole.notes)
    order = torch.randperm(len(train.labels), generator=generator)
    splits = {
        "train": train,
        "calibration": train.taken(order[: max(1, calibration_size)].sort().values),
        "validation": validation,
        "test": raw["test"],
    }
    _note_copies(splits, whole.notes)
    return splits


def _check_shapes(raw: dict[str, RawSplit], name: str) -> tuple[int, int, int]:
    _, channels, height, width = raw["train"].pixels.shape
    for split, data in raw.items():
        if data.pixels.shape[1:] != (channels, height, width):
            raise InputDataError(
                f"The images of the {split} split of {name} are {_describe(data.pixels)}, those of "
                f"the train split {_describe(raw['train'].pixels)}: give --image-size N to scale "
                f"and crop all of them to N x N."
            )
    return channels, height, width


def _describe(pixels: Pixels) -> str:
    _, channels, height, width = pixels.shape
    return f"{width} x {height} pixels with {channels} channel{'s' if channels > 1 else ''}"


def _normalisation(
    channels: int, scale: float, mean: Sequence[float] | None, std: Sequence[float] | None
) -> Normalisation:
    colour = channels == 3
    mean = tuple(mean) if mean is not None else (IMAGENET_MEAN if colour else (0.5,) * channels)
    std = tuple(std) if std is not None else (IMAGENET_STD if colour else (0.5,) * channels)
    if len(mean) != channels or len(std) != channels:
        raise InputDataError(
            f"Expected a mean and a positive std for each of {channels} channels, got mean {mean} "
            f"and std {std}."
        )
    check_normalisation(mean, std)
    return Normalisation(scale, mean, std)
