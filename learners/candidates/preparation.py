"""The images that a learner is prepared with, and those that every candidate sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from amc_compress.learners.base import Batches
from amc_compress.learners.candidates.held_out import HeldOut
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.proxy import RECALIBRATION_BATCH, image_batches
from amc_compress.learners.numerics.layout import laid_out, layout_of, owned
from amc_compress.learners.training.data_checks import check_labels, collect, count_outputs, seeded
from amc_env.errors import InputDataError

_STATISTICS_BATCH = 64


@dataclass(frozen=True)
class Images:
    """What a learner is prepared with.

    Attributes:
        example: One batch as the network takes it.
        calibration: Images for statistics, float32, shape (n_calibration, ...).
        labels: Their classes, int64.
        recalibration: Images that every candidate sees, likewise, and their classes.
        held_out: The validation images.
        n_outputs: Classes of the network.
        device: Where the network is.
        layout: Of images and weights, see ``learners.numerics.layout``.
    """

    example: Tensor
    calibration: Tensor
    labels: Tensor
    recalibration: tuple[Tensor, Tensor]
    held_out: HeldOut
    n_outputs: int
    device: torch.device
    layout: torch.memory_format

    def batches(self, size: int = _STATISTICS_BATCH) -> list[tuple[Tensor, Tensor]]:
        """Returns the calibration images on the device and in their layout, with their classes."""
        parts = zip(
            torch.split(self.calibration, size), torch.split(self.labels, size), strict=True
        )
        return [(laid_out(x.to(self.device), self.layout), y) for x, y in parts]


def read_images(
    network: nn.Module,
    calibration: Batches,
    validation: Batches,
    example: Tensor,
    options: CandidateOptions,
) -> Images:
    """Reads both kinds of batches and checks them against the network.

    Raises:
        InputDataError: If images or labels are not what the network takes.
    """
    count = max(options.n_calibration, options.n_recalibration)
    images, labels = collect(calibration, count, "calibration", example, options.seed)
    held_out = HeldOut(
        validation,
        example,
        n_validation=options.n_validation,
        seed=options.seed,
        loader_seed=options.seed,
    )
    device = torch.device(options.device)
    n_outputs = count_outputs(network, images[:2].to(device))
    check_labels(labels, n_outputs, "calibration")
    check_labels(held_out.labels, n_outputs, "validation")
    return Images(
        example=example,
        calibration=images[: options.n_calibration],
        labels=labels[: options.n_calibration],
        recalibration=(images[: options.n_recalibration], labels[: options.n_recalibration]),
        held_out=held_out,
        n_outputs=n_outputs,
        device=device,
        layout=layout_of(network, images[:1].to(device)),
    )


def check_not_constant(images: Tensor) -> None:
    """Checks that calibration images are not all the same number.

    Raises:
        InputDataError: If they are.
    """
    if bool((images == images.flatten()[0]).all()):
        raise InputDataError(
            "Expected calibration images that differ, got the same constant everywhere: no "
            "range of activations can be found; pass real training images."
        )


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
    images: Images, options: CandidateOptions, batch_size: int = RECALIBRATION_BATCH
) -> Preloaded:
    """Loads what candidates are recalibrated and trained on.

    Args:
        images: What the learner is prepared with.
        options: Its options; as many training batches are loaded as there are steps at most.
        batch_size: Of the recalibration images.

    Raises:
        InputDataError: If there is no training batch, or one does not fit the network.
    """
    chosen, labels = images.recalibration
    parts = image_batches(chosen, batch_size, images.device, images.layout)
    classes = torch.split(labels, [len(part) for part in parts])
    return Preloaded(parts, [owned(part) for part in classes], training_batches(images, options))


def training_batches(images: Images, options: CandidateOptions) -> list[tuple[Tensor, Tensor]]:
    """Loads the batches that every candidate is trained on; see :func:`preload`."""
    if not options.finetune_steps or options.train is None:
        return []
    loaded = []
    with seeded(options.train, options.seed):
        for batch in islice(options.train, options.finetune_steps):
            x, y = collect([batch], None, "training", images.example)
            check_labels(y, images.n_outputs, "training")
            loaded.append((laid_out(x.to(images.device), images.layout), y.to(images.device)))
    if not loaded:
        raise InputDataError("Expected at least one batch of training images, got none.")
    return loaded
