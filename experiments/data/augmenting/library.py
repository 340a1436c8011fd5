"""RandAugment, mixup and cutmix by ``torchvision.transforms.v2``, which is optional."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from amc_env.errors import MissingDependencyError
from amc_env.validation.sentences import first_line

OF_LIBRARY = ("randaugment", "mixup", "cutmix")
"""Augmentations that need torchvision, by the words of ``--augment``."""

_MIXUP_ALPHA, _CUTMIX_ALPHA = 0.2, 1.0  # of torchvision's own training reference


@dataclass(frozen=True)
class LibraryAugmentation:
    """What torchvision does to a batch.

    Args:
        names: Of ``OF_LIBRARY``. Of mixup and cutmix together each batch has one, drawn evenly.
        n_classes: Labels that are mixed become shares of so many classes.

    Raises:
        MissingDependencyError: If torchvision cannot be imported.
    """

    names: tuple[str, ...]
    n_classes: int

    def __post_init__(self) -> None:
        library(self.names)

    def of_images(self, pixels: Tensor) -> Tensor:
        """Changes every image by draws of its own; uint8 (N, C, H, W) in and out."""
        if "randaugment" not in self.names:
            return pixels
        change = library(self.names).RandAugment()
        return torch.stack([change(image) for image in pixels])

    def of_batch(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Mixes pairs of images, and their labels int64 (N,) to shares float32 (N, classes)."""
        v2, kinds = library(self.names), []
        if "mixup" in self.names:
            kinds.append(v2.MixUp(alpha=_MIXUP_ALPHA, num_classes=self.n_classes))
        if "cutmix" in self.names:
            kinds.append(v2.CutMix(alpha=_CUTMIX_ALPHA, num_classes=self.n_classes))
        if not kinds:
            return images, labels
        return v2.RandomChoice(kinds)(images, labels)  # type: ignore[no-any-return]


def library(names: Sequence[str]) -> Any:
    """Returns ``torchvision.transforms.v2``.

    Raises:
        MissingDependencyError: If it cannot be imported.
    """
    try:
        from torchvision.transforms import v2
    except (ImportError, RuntimeError) as error:  # it raises the latter where it does not fit torch
        raise MissingDependencyError(
            f"--augment {','.join(names)} needs torchvision in a version that fits torch "
            f'({first_line(error, 100)}): pip install "amc-compress[vision]", or leave it out.'
        ) from error
    return v2
