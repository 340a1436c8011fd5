"""The images that every candidate sees before it is judged."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from amc_env.errors import InputDataError
from learners.base import Batches
from learners.intake import check_labels, collect
from learners.layout import laid_out, owned
from learners.proxy import RECALIBRATION_BATCH, image_batches
from learners.stepping import seeded


@dataclass
class Preloaded:
    """Batches on the device.

    Args:
        recalibration: Images for batch-norm statistics.
        labels: Their classes, for gradients.
        training: ``(images, labels)`` of the SGD steps.
    """

    recalibration: list[Tensor]
    labels: list[Tensor] = field(default_factory=list)
    training: list[tuple[Tensor, Tensor]] = field(default_factory=list)

    def labelled(self) -> list[tuple[Tensor, Tensor]]:
        """Returns the recalibration images with their classes."""
        return list(zip(self.recalibration, self.labels, strict=True))


def preload(
    images: Tensor,
    labels: Tensor,
    train_batches: Batches | None,
    steps: int,
    example: Tensor,
    n_outputs: int,
    device: torch.device,
    layout: torch.memory_format = torch.channels_last,
    seed: int = 0,
) -> Preloaded:
    """Loads what candidates are recalibrated and trained on.

    Args:
        images: For the batch-norm statistics.
        labels: Their classes.
        train_batches: For the SGD steps.
        steps: How many of these there are; so many batches are loaded at most.
        example: One batch as the network takes it.
        n_outputs: Classes of the network.
        device: Where to keep them.
        layout: Of images; see ``learners.layout``.
        seed: Decides the order of ``train_batches``, for loaders that shuffle.

    Raises:
        InputDataError: If there is no training batch, or one does not fit the network.
    """
    parts = image_batches(images, RECALIBRATION_BATCH, device, layout)
    classes = torch.split(labels, [len(part) for part in parts])
    data = Preloaded(parts, [owned(part) for part in classes])
    if not steps or train_batches is None:
        return data
    with seeded(train_batches, seed):
        for batch in islice(train_batches, steps):
            x, y = collect([batch], None, "training", example)
            check_labels(y, n_outputs, "training")
            data.training.append((laid_out(x.to(device), layout), y.to(device)))
    if not data.training:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return data
