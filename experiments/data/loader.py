"""Batches from tensors in memory, shuffled, augmented and normalised."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from amc_compress.data.raw import Targets
from amc_compress.learners.networks.normalisation import Normalisation
from amc_env.errors import InputDataError


@dataclass(frozen=True)
class Augmentation:
    """Random shift by up to ``pad`` pixels (black border), and a mirror image every second time."""

    pad: int = 4
    flip: bool = True


@dataclass(frozen=True)
class RandomResizedCrop:
    """A random part of each image, scaled to ``size`` x ``size``: as torchvision's.

    Args:
        size: Side of what comes out, in pixels.
        flip: Whether every second image is mirrored.
        scale: Least and largest share of the image's area.
        ratio: Least and largest width / height of the part.
    """

    size: int
    flip: bool = True
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)


class TensorLoader:
    """Iterable of ``(images float32 NCHW, labels)`` over pixels held in memory.

    Labels are classes int64 (N,), masks int64 (N, H, W), or a list with a dictionary of boxes for
    each image.

    Order and augmentation are a function of ``(seed, epoch)`` alone: the same epoch gives the same
    batches, whatever was read before. Call :meth:`set_epoch` before each pass; without it every
    pass is the same.
    """

    def __init__(
        self,
        pixels: Tensor,
        labels: Targets,
        normalisation: Normalisation,
        *,
        batch_size: int = 128,
        shuffle: bool = False,
        augmentation: Augmentation | RandomResizedCrop | None = None,
        seed: int = 0,
        size: int | None = None,
    ) -> None:
        """Hold uint8 ``pixels`` (N, C, H, W) and the ``labels`` of N images.

        ``size`` is the side of the square from the middle that is read where nothing is
        augmented; None reads whole images.
        """
        if len(pixels) != len(labels):
            raise InputDataError(
                f"Expected one label for each image, got {len(pixels)} images and {len(labels)} "
                "labels."
            )
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}.")
        self.pixels = pixels
        self.labels = labels
        self.normalisation = normalisation
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.augmentation = augmentation
        self.seed = seed
        self.size = size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next passes."""
        self.epoch = epoch

    @property
    def images(self) -> Tensor:
        """All images, normalised, in stored order, not augmented; computed at each access."""
        return self.normalisation(centre(self.pixels, self.size))

    @property
    def n_images(self) -> int:
        """Number of images (``len`` counts batches)."""
        return len(self.pixels)

    def __len__(self) -> int:
        full, rest = divmod(self.n_images, self.batch_size)
        # Batch norm cannot train on a single 1 x 1 feature map, so a lone last image is left out.
        skip = self.shuffle and rest == 1 and full > 0
        return full + (rest > 0 and not skip)

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        # A SeedSequence mixes (seed, epoch) so that neighbouring pairs share nothing.
        mixed = np.random.SeedSequence([self.seed, self.epoch]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(mixed[0]) & 0x7FFF_FFFF_FFFF_FFFF)
        order = (
            torch.randperm(self.n_images, generator=generator)
            if self.shuffle
            else torch.arange(self.n_images)
        )
        for index in range(len(self)):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            pixels = self.pixels[chosen]
            if self.augmentation is None:
                pixels = centre(pixels, self.size)
            elif isinstance(self.augmentation, RandomResizedCrop):
                pixels = resized_crops(pixels, self.augmentation, generator)
            else:
                pixels = augment(pixels, self.augmentation, generator)
            yield self.normalisation(pixels), self.labels[chosen]


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Shift and mirror every image by its own draw; shape (N, C, H, W) in and out.

    One gather for the whole batch: image n at (h, w) comes from (h + dy[n], w' + dx[n]) of the
    padded images, with w' = W - 1 - w where it is mirrored.
    """
    n, _, height, width = pixels.shape
    pad = augmentation.pad
    shifts = torch.randint(0, 2 * pad + 1, (2, n), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    rows = torch.arange(height) + shifts[0, :, None]  # (N, H)
    columns = torch.arange(width).expand(n, width)
    if augmentation.flip:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    columns = columns + shifts[1, :, None]  # (N, W)
    padded = functional.pad(pixels, (pad, pad, pad, pad))
    image = torch.arange(n)[:, None, None]
    # Indices around a slice put the sliced axis last: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def centre(pixels: Tensor, size: int | None) -> Tensor:
    """Returns the middle ``size`` x ``size`` of every image, a view; all of it for None."""
    if size is None or pixels.shape[-1] == pixels.shape[-2] == size:
        return pixels
    top, left = (round((side - size) / 2) for side in pixels.shape[-2:])
    return pixels[..., top : top + size, left : left + size]


def resized_crops(pixels: Tensor, crop: RandomResizedCrop, generator: torch.Generator) -> Tensor:
    """Cuts a random part of each image and scales it; (N, C, H, W) -> (N, C, size, size).

    The part has a share of the area and a shape drawn for it, the shape evenly on a logarithmic
    scale. A part that does not fit is cut to the image, where torchvision draws again: all draws
    of a batch are known at once.
    """
    n, channels, height, width = pixels.shape
    draws = torch.rand(5, n, generator=generator, dtype=torch.float64)
    low, high = crop.scale
    area = height * width * (low + (high - low) * draws[0])
    low, high = np.log(crop.ratio)
    ratio = torch.exp(low + (high - low) * draws[1])
    heights = (area / ratio).sqrt().round().clamp(1, height)
    widths = (area * ratio).sqrt().round().clamp(1, width)
    # A draw is below 1, so that the last offset is that of a part at the very edge.
    tops = (draws[2] * (height - heights + 1)).floor().long().tolist()
    lefts = (draws[3] * (width - widths + 1)).floor().long().tolist()
    rows, columns = heights.long().tolist(), widths.long().tolist()
    made = pixels.new_empty(n, channels, crop.size, crop.size)
    for i in range(n):
        part = pixels[i, :, tops[i] : tops[i] + rows[i], lefts[i] : lefts[i] + columns[i]]
        made[i] = functional.interpolate(
            part[None], (crop.size, crop.size), mode="bilinear", antialias=True
        )[0]
    if not crop.flip:
        return made
    return torch.where((draws[4] < 0.5).view(-1, 1, 1, 1), made.flip(3), made)
