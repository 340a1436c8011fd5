"""What detectors learn from: a dictionary for each image, as torchvision's detectors take them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxTargets:
    """Boxes of N images with their classes, indexed like a tensor of labels.

    Args:
        boxes: Corners ``x0, y0, x1, y1`` in pixels from the upper left corner of the image,
            float32 (M, 4), image by image.
        labels: Classes, int64 (M,); 0 is the background's and never a box's.
        first: Index of the first box of each image, and M behind them, int64 (N + 1,).
    """

    boxes: Tensor
    labels: Tensor
    first: Tensor

    def __len__(self) -> int:
        return len(self.first) - 1

    def __getitem__(self, images: Tensor) -> list[dict[str, Tensor]]:
        """Returns ``{"boxes": (n, 4), "labels": (n,)}`` of each of these images; n may be 0."""
        return [self._of(image) for image in images.tolist()]

    def taken(self, images: Tensor) -> BoxTargets:
        """Returns the boxes of these images alone."""
        rows = self[images]
        counts = torch.tensor([0, *(len(row["labels"]) for row in rows)])
        return BoxTargets(
            torch.cat([self.boxes[:0], *(row["boxes"] for row in rows)]),
            torch.cat([self.labels[:0], *(row["labels"] for row in rows)]),
            counts.cumsum(0),
        )

    def _of(self, image: int) -> dict[str, Tensor]:
        own = slice(int(self.first[image]), int(self.first[image + 1]))
        return {"boxes": self.boxes[own], "labels": self.labels[own]}
