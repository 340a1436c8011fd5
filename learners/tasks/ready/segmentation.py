"""Segmentation: a class for every pixel, cross entropy, mean intersection over union."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Inputs, tensors_of
from amc_compress.learners.tasks.ready.shared.class_per_place import ClassPerPlace
from amc_compress.learners.tasks.task import Measure, Meter
from amc_env.errors import InputDataError

if TYPE_CHECKING:
    from torchmetrics.classification import MulticlassConfusionMatrix


class Segmentation(ClassPerPlace):
    """Masks (N, ...) of class numbers, 255 ignored; logits (N, classes, ...) of the same size.

    The score is the mean over the classes of the intersection over the union, both counted over all
    pixels of all images; classes in neither masks nor outputs are left out. Masks (N, 1, ...) are
    taken too. A network with one channel says how likely class 1 is, class 0 is the rest.
    Of ``torchvision``'s dictionaries ``out`` counts.
    """

    name = "segmentation"
    metric = "mean_iou"
    best_score = 1.0
    offered: ClassVar[Mapping[str, Measure]] = {"pixel_accuracy": Measure(best=1.0)}
    ignored = 255
    class_dim = 1
    place = "pixel"

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """Returns inputs and masks, int64, without a dimension of channels."""
        inputs, masks = super().split(batch)
        if isinstance(masks, Tensor):
            first = next(tensors_of(inputs))
            if masks.ndim == first.ndim and masks.ndim > 1 and masks.shape[1] == 1:
                masks = masks.squeeze(1)
            if not masks.is_floating_point():
                masks = masks.long()
        return inputs, masks

    def outputs(self, raw: Any) -> Any:
        """Returns the logits, for at least two classes."""
        logits = raw["out"] if isinstance(raw, Mapping) and "out" in raw else super().outputs(raw)
        if isinstance(logits, Tensor) and logits.ndim > 2 and logits.shape[1] == 1:
            return torch.cat([torch.zeros_like(logits), logits], dim=1)
        return logits

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter of ``mean_iou`` and, where asked for, ``pixel_accuracy``."""
        return Overlap(self, reported=reported)


class Overlap:
    """Mean intersection over union, from the confusion matrix of all pixels.

    Args:
        task: Says which pixels count.
        reported: Whether the share of right pixels is wanted too.
    """

    def __init__(self, task: Segmentation, *, reported: bool) -> None:
        self._task = task
        self._reported = reported
        self._matrix: MulticlassConfusionMatrix | None = None

    def update(self, outputs: Tensor, targets: Tensor) -> None:
        """Counts a batch: logits (N, classes, ...) and masks (N, ...)."""
        if self._matrix is None:
            from torchmetrics.classification import MulticlassConfusionMatrix

            self._matrix = MulticlassConfusionMatrix(
                outputs.shape[1], ignore_index=self._task.ignored, validate_args=False
            ).to(outputs.device)
        self._matrix.update(outputs.argmax(1), targets.long())

    def compute(self) -> dict[str, float]:
        """Returns the metrics.

        Raises:
            InputDataError: If no pixel counts.
        """
        # torchmetrics' MulticlassJaccardIndex divides the same matrix in float32, which knows only
        # 24 bits of a number of pixels; its MeanIoU takes the mean of single images.
        found = torch.zeros(1, 1) if self._matrix is None else self._matrix.compute()
        matrix = found.double()
        if not matrix.sum():
            raise InputDataError(
                f"Expected at least one pixel to measure on, got masks of {self._task.ignored} "
                f"alone: check what is ignored."
            )
        right = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - right
        values = {"mean_iou": float((right / union)[union > 0].mean())}
        if self._reported:
            values["pixel_accuracy"] = float(right.sum() / matrix.sum())
        return values
