"""Data sets as tensors before they are batched: splits, and how a part is cut from one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from amc_compress.data.scenes.targets import BoxTargets
from amc_compress.data.streaming.pixels import StreamedPixels
from amc_env.errors import InputDataError

Targets = Tensor | BoxTargets
"""What is learned of N images: classes int64 (N,), masks int64 (N, H, W), or boxes."""

Pixels = Tensor | StreamedPixels
"""N images uint8 (N, C, H, W), in memory or still encoded."""


@dataclass(frozen=True)
class RawSplit:
    """Pixels uint8 (N, C, H, W), what is learned of each image, and its digest int64 (N,)."""

    pixels: Pixels
    labels: Targets
    digests: Tensor

    @property
    def classes(self) -> Tensor:
        """The class of each image, int64 (N,); all alike where images have no one class."""
        if isinstance(self.labels, Tensor) and self.labels.ndim == 1:
            return self.labels
        return torch.zeros(len(self.pixels), dtype=torch.int64)

    def taken(self, indices: Tensor) -> RawSplit:
        """Returns these images alone."""
        labels: Targets = (
            self.labels.taken(indices)
            if isinstance(self.labels, BoxTargets)
            else self.labels[indices]
        )
        return RawSplit(self.pixels[indices], labels, self.digests[indices])


@dataclass(frozen=True)
class Whole:
    """A data set before it is cut.

    Args:
        splits: By name, see ``amc_compress.data.sources.stored.SPLIT_NAMES``.
        class_names: By number.
        notes: What was chosen, mapped, or left out, as sentences.
        scale: The largest value of a pixel.
        task: What the labels are for, as ``--task`` names it.
        moves: Whether an image may be shifted and mirrored without its labels.
    """

    splits: dict[str, RawSplit]
    class_names: tuple[str, ...]
    notes: list[str]
    scale: float = 255.0
    task: str = "classification"
    moves: bool = True


def cut(
    classes: Tensor, size: int, how: Literal["random", "tail"], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Returns the indices of (the rest, the ``size`` chosen), both ascending.

    Args:
        classes: Of each image, int64 (N,): images are drawn equally from all of them.
        size: How many are chosen.
        how: ``"random"``, or ``"tail"`` for the last.
        generator: Of the random ones.

    Raises:
        InputDataError: If none would be chosen, or none left.
    """
    total = len(classes)
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
    members = order[classes[order].argsort(stable=True)]  # class by class
    sizes = torch.bincount(classes)
    first, size_of = (sizes.cumsum(0) - sizes)[classes[members]], sizes[classes[members]]
    position[members] = ((torch.arange(total) - first).double() + 0.5) / size_of
    chosen = order[position[order].argsort(stable=True)][:size].sort().values
    mask = torch.ones(total, dtype=torch.bool)
    mask[chosen] = False
    return mask.nonzero().squeeze(1), chosen
