"""Scenes of up to five of scikit-learn's digits, 64 x 64, drawn in a second from a fixed seed.

Digits of several sizes and contrasts lie next to each other on a shaded, noisy ground. Each split
is drawn with digits of its own: a digit that is trained on is in no scene that validates or tests.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from amc_compress.data.scenes.targets import BoxTargets

SIDE = 64
"""Height and width of a scene in pixels."""

CLASS_NAMES = ("background", *map(str, range(10)))
"""The classes by number: the digit d is class d + 1, in masks and at boxes."""

_COUNTS = (0.04, 0.16, 0.2, 0.2, 0.2, 0.2)  # probability of 0, 1, ... digits in a scene
_SIZES = (14, 30)  # pixels that the 8 of a digit become, the second exclusive
_INK = 0.4  # share of the ink above which a pixel is the digit's
_TRIES = 30  # places that are tried for a digit before it is left out


@dataclass(frozen=True)
class Scenes:
    """N scenes.

    Args:
        pixels: Grey, uint8 (N, 1, 64, 64).
        masks: Class of each pixel, 0 where there is no digit, int64 (N, 64, 64).
        boxes: Around the pixels of each digit.
    """

    pixels: Tensor
    masks: Tensor
    boxes: BoxTargets


def digit_scenes(digits: np.ndarray, classes: np.ndarray, count: int, seed: int) -> Scenes:
    """Draws scenes; equal arguments give equal ones.

    Args:
        digits: The digits to choose from, their ink 0 to 16, (D, 8, 8).
        classes: Which digits they are, 0 to 9, (D,).
        count: How many scenes.
        seed: Of everything random.
    """
    generator = np.random.default_rng(seed)
    inks = np.rint(digits * (255 / 16)).astype(np.uint8)
    drawn = [_scene(inks, classes, generator) for _ in range(count)]
    boxes = [box for _, _, found in drawn for box, _ in found]
    labels = [label for _, _, found in drawn for _, label in found]
    return Scenes(
        torch.from_numpy(np.stack([pixels for pixels, _, _ in drawn])).unsqueeze(1),
        torch.from_numpy(np.stack([mask for _, mask, _ in drawn])),
        BoxTargets(
            torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
            torch.tensor(labels, dtype=torch.int64),
            torch.tensor([0, *(len(found) for _, _, found in drawn)]).cumsum(0),
        ),
    )


_Found = list[tuple[tuple[int, int, int, int], int]]


def _scene(
    inks: np.ndarray, classes: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, _Found]:
    """Pixels uint8 (64, 64), mask int64 (64, 64), and box and class of each digit."""
    image = _ground(generator)
    mask = np.zeros((SIDE, SIDE), np.int64)
    found: _Found = []
    for _ in range(generator.choice(len(_COUNTS), p=_COUNTS)):
        chosen = generator.integers(len(inks))
        size = int(generator.integers(*_SIZES))
        ink = _enlarged(inks[chosen], size)
        inside = _box_of(ink > _INK)
        place = _free_place(inside, size, found, generator)
        if place is None:
            continue
        x, y = place
        label = int(classes[chosen]) + 1
        found.append(((x + inside[0], y + inside[1], x + inside[2], y + inside[3]), label))
        part = np.s_[y : y + size, x : x + size]
        white = generator.uniform(0.55, 1.0)
        image[part] += (white - image[part]) * ink
        mask[part][ink > _INK] = label
    image += generator.normal(0, generator.uniform(0.0, 0.06), image.shape)
    return np.rint(image.clip(0, 1) * 255).astype(np.uint8), mask, found


def _ground(generator: np.random.Generator) -> np.ndarray:
    """A plane from one grey to another, (64, 64) in [0, 0.4]."""
    corners = generator.uniform(0, 0.4, (2, 2)).astype(np.float32)
    return np.asarray(Image.fromarray(corners).resize((SIDE, SIDE), Image.Resampling.BILINEAR)) + 0


def _enlarged(ink: np.ndarray, size: int) -> np.ndarray:
    """Ink uint8 (8, 8) as shares of the most, (size, size)."""
    # Pillow resizes bytes by integer arithmetic: the same everywhere.
    image = Image.fromarray(ink).resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(image).astype(np.float32) / 255


def _box_of(inside: np.ndarray) -> tuple[int, int, int, int]:
    columns, rows = np.flatnonzero(inside.any(0)), np.flatnonzero(inside.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _free_place(
    inside: tuple[int, int, int, int], size: int, found: _Found, generator: np.random.Generator
) -> tuple[int, int] | None:
    """Where a digit's square may lie so that its box meets no other; None if no try was free."""
    for _ in range(_TRIES):
        x, y = (int(c) for c in generator.integers(0, SIDE - size + 1, 2))
        x0, y0, x1, y1 = (x + inside[0], y + inside[1], x + inside[2], y + inside[3])
        if all(
            x1 <= left or right <= x0 or y1 <= top or bottom <= y0
            for (left, top, right, bottom), _ in found
        ):
            return x, y
    return None
