"""The augmentation of a data set from the words of ``--augment``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from amc_compress.config.values import check_augmentations
from amc_compress.data.augmenting.library import OF_LIBRARY, LibraryAugmentation, library
from amc_compress.data.augmenting.parts import Augmentation, Parts, RandomResizedCrop
from amc_compress.data.raw import Whole
from amc_env.errors import InputDataError

STANDARD, NONE = "standard", "none"


def check_words(words: Sequence[str]) -> None:
    """Checks the words before any image is read.

    Raises:
        MissingDependencyError: If one of them needs torchvision, which cannot be imported.
        ValueError: If one is unknown.
    """
    check_augmentations(words)
    if needed := [word for word in words if word in OF_LIBRARY]:
        library(needed)


def chosen_augmentation(
    words: Sequence[str],
    whole: Whole,
    shape: tuple[int, int, int],
    flip: bool | None,
    image_size: int | None,
) -> dict[str, Any]:
    """Returns what a training loader takes.

    Args:
        words: Checked.
        whole: The data set.
        shape: ``(channels, height, width)`` of its images.
        flip: Whether ``standard`` mirrors; None mirrors colour images.
        image_size: Side of the images, where they are scaled to one.

    Raises:
        InputDataError: If the data cannot be augmented so.
    """
    _check_data(words, whole, shape, image_size)
    names = tuple(word for word in OF_LIBRARY if word in words)
    more = LibraryAugmentation(names, len(whole.class_names)) if names else None
    return {"augmentation": _parts(words, whole, shape, flip, image_size), "more": more}


def _parts(
    words: Sequence[str],
    whole: Whole,
    shape: tuple[int, int, int],
    flip: bool | None,
    image_size: int | None,
) -> Parts | None:
    if STANDARD in words:
        if not whole.moves:
            return None
        mirrored = shape[0] == 3 if flip is None else flip
        if image_size is not None:
            return RandomResizedCrop(image_size, flip=mirrored)
        return Augmentation(pad=max(1, round(shape[2] / 8)), flip=mirrored)
    if "crop" in words:
        return RandomResizedCrop(image_size or shape[1], flip="flip" in words)
    return Augmentation(pad=0, flip=True) if "flip" in words else None


def _check_data(
    words: Sequence[str], whole: Whole, shape: tuple[int, int, int], image_size: int | None
) -> None:
    moved = [word for word in words if word not in (STANDARD, NONE)]
    if moved and not whole.moves:
        raise InputDataError(
            f"Expected --augment standard or none for data whose labels are places in the image, "
            f"got {','.join(words)}: leave out {' and '.join(moved)}."
        )
    if "crop" in words and image_size is None and shape[1] != shape[2]:
        raise InputDataError(
            f"Expected square images for --augment crop, got {shape[2]} x {shape[1]} pixels: give "
            f"--image-size N too."
        )
