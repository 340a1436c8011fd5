"""Geometry of boxes ``x0, y0, x1, y1``, and non-maximum suppression, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def areas(boxes: Tensor) -> Tensor:
    """Returns the areas (...,) of boxes (..., 4)."""
    sides = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0)
    return sides[..., 0] * sides[..., 1]


def overlaps(boxes: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the areas of intersection and union of boxes (..., 4), pair by pair."""
    corner = torch.maximum(boxes[..., :2], others[..., :2])
    sides = (torch.minimum(boxes[..., 2:], others[..., 2:]) - corner).clamp(min=0)
    shared = sides[..., 0] * sides[..., 1]
    return shared, areas(boxes) + areas(others) - shared


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the intersection over union of boxes (..., 4), pair by pair; 0 where both are empty.

    For all pairs of two sets give ``boxes[:, None]`` and ``others[None]``.
    """
    shared, union = overlaps(boxes, others)
    return shared / union.clamp(min=1e-9)


def generalised_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Returns the generalised IoU in [-1, 1] of boxes (..., 4) (Rezatofighi et al. 2019)."""
    shared, union = overlaps(boxes, others)
    corner = torch.minimum(boxes[..., :2], others[..., :2])
    sides = torch.maximum(boxes[..., 2:], others[..., 2:]) - corner
    hull = (sides[..., 0] * sides[..., 1]).clamp(min=1e-9)
    return shared / union.clamp(min=1e-9) - (hull - union) / hull


def survivors(boxes: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """Non-maximum suppression of B images at once.

    Args:
        boxes: (B, K, 4), those of the best score first.
        labels: Their classes, (B, K): boxes of different classes leave each other alone.
        threshold: A box is dropped for a better one that stays and has a larger IoU with it.

    Returns:
        Which boxes stay, bool (B, K).
    """
    met = iou(boxes[:, :, None], boxes[:, None]) > threshold
    met &= labels[:, :, None] == labels[:, None]
    kept = torch.ones_like(labels, dtype=torch.bool)
    for best in range(labels.shape[1]):
        dropped = met[:, best, best + 1 :] & kept[:, best, None]
        kept[:, best + 1 :] &= ~dropped
    return kept
