"""Calibration images that repairs of candidates use."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.proxy import RECALIBRATION_BATCH, image_batches
from amc_compress.learners.numerics.layout import laid_out, owned
from amc_compress.learners.training.data_checks import check_labels, collect, count_outputs, seeded
from amc_env.errors import InputDataError


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
        layout: Of images; see ``amc_compress.learners.numerics.layout``.
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


def check_training(finetune_steps: int, train: Batches | None) -> None:
    """Rejects steps without batches.

    Raises:
        ValueError: If there are none.
    """
    if finetune_steps and train is None:
        raise ValueError(
            f"Expected training batches for finetune_steps={finetune_steps}, got none; "
            f"pass train=loader."
        )


def check_counts(n_validation: int | None, n_calibration: int, n_recalibration: int) -> None:
    """Rejects numbers of images below 1.

    Raises:
        ValueError: If one is.
    """
    if min(n_calibration, n_recalibration, 1 if n_validation is None else n_validation) < 1:
        raise ValueError("Expected n_validation, n_calibration and n_recalibration >= 1.")


def read_images(
    network: nn.Module,
    calibration: Batches,
    validation: Batches,
    n_calibration: int,
    example: Tensor,
    *,
    n_validation: int | None,
    seed: int,
) -> tuple[tuple[Tensor, Tensor], HeldOut, int]:
    """Reads both kinds of batches and checks them against the network.

    Returns:
        Calibration images and labels, the validation images, the number of classes.

    Raises:
        InputDataError: If images or labels are not what the network takes, or all the same.
    """
    images, labels = collect(calibration, n_calibration, "calibration", example)
    held_out = HeldOut(validation, example, n_validation=n_validation, seed=seed)
    device = next(network.parameters()).device
    n_outputs = count_outputs(network, images[:2].to(device))
    check_labels(labels, n_outputs, "calibration")
    check_labels(held_out.labels, n_outputs, "validation")
    check_not_constant(images)
    return (images, labels), held_out, n_outputs


def check_not_constant(images: Tensor) -> None:
    """Rejects calibration images that are all the same number.

    Raises:
        InputDataError: If they are.
    """
    if bool((images == images.flatten()[0]).all()):
        raise InputDataError(
            "Expected calibration images that differ, got the same constant everywhere: no "
            "range of activations can be found; pass real training images."
        )


def training_batches(
    batches: Batches | None,
    steps: int,
    example: Tensor,
    n_outputs: int,
    device: torch.device,
    *,
    layout: torch.memory_format = torch.channels_last,
    seed: int = 0,
) -> list[tuple[Tensor, Tensor]]:
    """Preloads the batches that every candidate is trained on before it is evaluated.

    Args:
        batches: ``(images, labels)``; so many as there are steps are loaded at most.
        steps: SGD steps of a candidate.
        example: One batch as the network takes it.
        n_outputs: Classes of the network.
        device: Where to keep them.
        layout: Of images; see ``amc_compress.learners.numerics.layout``.
        seed: Decides the order of ``batches``, for loaders that shuffle.

    Raises:
        InputDataError: If there is none, or it does not fit the network.
    """
    if not steps or batches is None:
        return []
    loaded = []
    with seeded(batches, seed):
        for batch in islice(batches, steps):
            x, y = collect([batch], None, "training", example)
            check_labels(y, n_outputs, "training")
            loaded.append((laid_out(x.to(device), layout), y.to(device)))
    if not loaded:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return loaded
