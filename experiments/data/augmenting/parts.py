"""A random part of each image: shifted, or scaled from a random rectangle; and mirrored.

What is drawn for a batch is a small array, so that another process can carry it out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional


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


Parts = Augmentation | RandomResizedCrop


def drawn(parts: Parts, n: int, generator: torch.Generator) -> np.ndarray:
    """Returns what is drawn for ``n`` images: int64 (3, n) for shifts, float64 (5, n) for crops."""
    if isinstance(parts, RandomResizedCrop):
        return torch.rand(5, n, generator=generator, dtype=torch.float64).numpy()
    shifts = torch.randint(0, 2 * parts.pad + 1, (2, n), generator=generator)
    flips = torch.rand(n, generator=generator) < 0.5
    return torch.cat([shifts, flips[None].long()]).numpy()


def cut_out(pixels: Tensor, parts: Parts, draws: np.ndarray) -> Tensor:
    """Returns the part of every image that :func:`drawn` has drawn; (N, C, H, W) in and out."""
    made = _resized if isinstance(parts, RandomResizedCrop) else _shifted
    return made(pixels, parts, torch.from_numpy(draws))  # type: ignore[arg-type]


def augment(pixels: Tensor, parts: Parts, generator: torch.Generator) -> Tensor:
    """Returns a random part of every image; (N, C, H, W) in and out."""
    return cut_out(pixels, parts, drawn(parts, len(pixels), generator))


def _shifted(pixels: Tensor, augmentation: Augmentation, draws: Tensor) -> Tensor:
    """Shifts and mirrors every image by its own draw.

    One gather for the whole batch: image n at (h, w) comes from (h + dy[n], w' + dx[n]) of the
    padded images, with w' = W - 1 - w where it is mirrored.
    """
    n, _, height, width = pixels.shape
    pad, shifts, flips = augmentation.pad, draws[:2], draws[2].bool()
    rows = torch.arange(height) + shifts[0, :, None]  # (N, H)
    columns = torch.arange(width).expand(n, width)
    if augmentation.flip:
        columns = torch.where(flips[:, None], columns.flip(1), columns)
    columns = columns + shifts[1, :, None]  # (N, W)
    padded = functional.pad(pixels, (pad, pad, pad, pad))
    image = torch.arange(n)[:, None, None]
    # Indices around a slice put the sliced axis last: (N, H, W, C).
    return padded[image, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()


def _resized(pixels: Tensor, crop: RandomResizedCrop, draws: Tensor) -> Tensor:
    """Cuts a random part of each image and scales it; (N, C, H, W) -> (N, C, size, size).

    The part has a share of the area and a shape drawn for it, the shape evenly on a logarithmic
    scale. A part that does not fit is cut to the image, where torchvision draws again: all draws
    of a batch are known at once.
    """
    n, channels, height, width = pixels.shape
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
