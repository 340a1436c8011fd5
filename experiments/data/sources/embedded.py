"""The data sets that need no file: scikit-learn's digits, and scenes that are made of them."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import torch

from amc_compress.data.copies import digests_of
from amc_compress.data.raw import RawSplit, Targets, Whole, cut
from amc_compress.data.scenes import CLASS_NAMES, Scenes, digit_scenes
from amc_env.errors import InputDataError
from amc_env.validation.checks import shown

DIGITS, SCENES = "digits", "digit-scenes"

DIGITS_TEST = 360  # a fifth of the 1,797 images
DIGITS_VALIDATION = DIGITS_TEST - 1

_SCENES = {"train": 2400, "validation": 400, "test": 600}
_TASKS = {"boxes": "detection", "masks": "segmentation"}
"""What a scene's labels are -> the task that they are for."""


def is_embedded(name: str) -> bool:
    """Returns whether a data set of this name, with or without ``:configuration``, is embedded."""
    return name == DIGITS or name.partition(":")[0] == SCENES


def read_embedded(name: str, task: str | None) -> Whole:
    """Returns an embedded data set.

    Args:
        name: ``"digits"``, ``"digit-scenes"``, ``"digit-scenes:boxes"`` or
            ``"digit-scenes:masks"``.
        task: What it is for, as ``--task`` names it; None if that is not said.

    Raises:
        InputDataError: If it has no such labels, or not those that the task needs.
    """
    return _digits() if name == DIGITS else _labelled_scenes(name, task)


def _bunch() -> Any:
    # Two seconds and 100 MB of every start otherwise, whatever data are asked for.
    from sklearn.datasets import load_digits

    return load_digits()


def _digits() -> Whole:
    """Scikit-learn's 1,797 digits; the same 360 are the test images whatever the seeds."""
    bunch = _bunch()
    pixels = torch.from_numpy(bunch.images.astype(np.uint8)).unsqueeze(1)
    labels = torch.from_numpy(bunch.target.astype(np.int64))
    whole = RawSplit(pixels, labels, digests_of(pixels))
    train, test = cut(labels, DIGITS_TEST, "random", torch.Generator().manual_seed(0))
    splits = {"train": whole.taken(train), "test": whole.taken(test)}
    return Whole(splits, tuple(str(name) for name in bunch.target_names), [], scale=16.0)


def _labelled_scenes(name: str, task: str | None) -> Whole:
    asked = name.partition(":")[2]
    if asked and asked not in _TASKS:
        raise InputDataError(
            f"Unknown labels {shown(asked)} of {SCENES}: expected {SCENES}:boxes or {SCENES}:masks."
        )
    wanted = next((kind for kind, of in _TASKS.items() if of == task), None)
    if asked and wanted and asked != wanted:
        raise InputDataError(
            f"The task {task!r} needs the {wanted} of {SCENES}, got {name}: leave out :{asked}."
        )
    kind = asked or wanted or "boxes"
    note = f"the boxes of {SCENES}, for detection; --task segmentation takes the masks"
    notes = [] if asked or wanted else [note]
    splits = {key: _labelled(scenes, kind) for key, scenes in _scenes().items()}
    return Whole(splits, CLASS_NAMES, notes, task=_TASKS[kind], moves=False)


def _labelled(scenes: Scenes, kind: str) -> RawSplit:
    labels: Targets = scenes.boxes if kind == "boxes" else scenes.masks
    return RawSplit(scenes.pixels, labels, digests_of(scenes.pixels))


@functools.cache  # two seconds, and nothing changes them
def _scenes() -> dict[str, Scenes]:
    """The scenes of each split, drawn from digits that no other split has."""
    bunch = _bunch()
    order = np.random.default_rng(0).permutation(len(bunch.target))
    held_out = np.split(order, [DIGITS_TEST, DIGITS_TEST + DIGITS_VALIDATION])
    digits = dict(zip(("test", "validation", "train"), held_out, strict=True))
    return {
        split: digit_scenes(bunch.images[digits[split]], bunch.target[digits[split]], count, seed)
        for seed, (split, count) in enumerate(_SCENES.items())
    }
