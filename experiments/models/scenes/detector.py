"""A small anchor-free detector after FCOS (Tian et al. 2019), for images of 64 x 64 pixels.

Its ``body`` is all of its convolutions, from images to maps of two scales; what makes losses or
boxes of the maps is plain arithmetic around it. It is called as torchvision's detectors are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.models.mobilenet import conv_bn
from amc_compress.models.scenes.boxes import areas, generalised_iou, iou, survivors

STRIDES = (4, 8)
"""Pixels between two cells of each scale's map."""

_LARGEST_SIDE = (18.0, float("inf"))  # of the boxes that each scale finds, in pixels
_CENTRE = 1.5  # a cell may find a box if it is this many strides or less from its middle
_FOCUS = 2.0  # exponent of the quality focal loss
_RARE = 0.01  # the score that an untrained network gives
_CANDIDATES = 64
_LEAST_SCORE = 0.02
_MOST_SHARED = 0.5

Maps = tuple[Tensor, ...]
Targets = Sequence[dict[str, Tensor]]


class Body(nn.Module):
    """Three scales down, one up again (Lin et al. 2017), and a head for each of two scales."""

    def __init__(self, n_outputs: int, in_channels: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(in_channels, 16, 3, stride=2), conv_bn(16, 16, 3))
        self.fine = nn.Sequential(conv_bn(16, 32, 3, stride=2), conv_bn(32, 32, 3))
        self.coarse = nn.Sequential(
            conv_bn(32, 64, 3, stride=2), conv_bn(64, 64, 3), conv_bn(64, 64, 3)
        )
        self.lateral = conv_bn(64, 32, 1, activation=None)
        self.heads = nn.ModuleList(
            nn.Sequential(conv_bn(width, width, 3), nn.Conv2d(width, n_outputs, 3, padding=1))
            for width in (32, 64)
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    @property
    def predictors(self) -> list[nn.Conv2d]:
        """The last layer of each head."""
        return [m for head in self.heads for m in head.children() if isinstance(m, nn.Conv2d)]

    def forward(self, x: Tensor) -> Maps:
        """Return the maps (N, n_outputs, H / stride, W / stride) of each of ``STRIDES``."""
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        above = functional.interpolate(self.lateral(coarse), scale_factor=2.0)
        return self.heads[0](fine + above), self.heads[1](coarse)


class Detector(nn.Module):
    """Finds boxes of ``n_classes - 1`` classes; class 0 is the background and never found."""

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.n_found = n_classes - 1
        self.body = Body(self.n_found + 4, in_channels)
        for last in self.body.predictors:
            nn.init.normal_(last.weight, std=0.01)
            if last.bias is not None:
                nn.init.zeros_(last.bias)
                nn.init.constant_(last.bias[: self.n_found], -math.log(1 / _RARE - 1))

    def forward(
        self, images: Tensor | Sequence[Tensor], targets: Targets | None = None
    ) -> dict[str, Tensor] | list[dict[str, Tensor]]:
        """Return losses in training mode, detections otherwise.

        Args:
            images: Of one size, (N, C, H, W), or N of (C, H, W).
            targets: ``boxes`` (n, 4) in pixels and ``labels`` (n,) of each image, for training.

        Returns:
            Losses by name, whose sum is to be minimised; or of each image ``boxes`` (n, 4),
            ``scores`` (n,) and ``labels`` (n,), the best first.

        Raises:
            ValueError: If targets are missing in training mode.
        """
        if not isinstance(images, Tensor):
            images = torch.stack(list(images))
        maps = self.body(images)
        if not self.training:
            return self.detections(maps)
        if targets is None:
            raise ValueError("Expected targets in training mode: boxes and labels of each image.")
        return self.losses(maps, targets)

    def detections(self, maps: Maps) -> list[dict[str, Tensor]]:
        """Returns ``boxes``, ``scores`` and ``labels`` of each image, the best first."""
        logits, boxes, _, _ = self._flat(maps)
        scores = logits.sigmoid().flatten(1)  # one for each pair of cell and class
        best, index = scores.topk(min(_CANDIDATES, scores.shape[1]), 1)
        cells, labels = index // self.n_found, index % self.n_found + 1
        found = boxes.gather(1, cells.unsqueeze(2).expand(-1, -1, 4))
        kept = survivors(found, labels, _MOST_SHARED) & (best > _LEAST_SCORE)
        return [
            {"boxes": found[i][kept[i]], "scores": best[i][kept[i]], "labels": labels[i][kept[i]]}
            for i in range(len(found))
        ]

    def losses(self, maps: Maps, targets: Targets) -> dict[str, Tensor]:
        """Returns the quality focal loss of the classes (Li et al. 2020), and that of the boxes."""
        logits, boxes, cells, strides = self._flat(maps)
        owners = [_owners(cells, strides, target["boxes"].to(boxes)) for target in targets]
        busy = torch.stack([owner >= 0 for owner in owners])  # images and cells with a box to find
        own = list(zip(targets, owners, strict=True))
        wanted = torch.cat([target["boxes"].to(boxes)[o[o >= 0]] for target, o in own])
        labels = torch.cat([target["labels"].to(o)[o[o >= 0]] for target, o in own])
        found, count = boxes[busy], max(len(wanted), 1)
        image, cell = busy.nonzero(as_tuple=True)
        quality = torch.zeros_like(logits)
        quality[image, cell, labels - 1] = iou(found.detach(), wanted)
        error = (quality - logits.sigmoid()).abs().pow(_FOCUS)
        entropy = functional.binary_cross_entropy_with_logits(logits, quality, reduction="none")
        box_loss = (1 - generalised_iou(found, wanted)).sum() / count
        return {"classification": (error * entropy).sum() / count, "boxes": 2 * box_loss}

    def _flat(self, maps: Maps) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits (N, P, classes) and boxes (N, P, 4) of all P cells, their middles and strides."""
        logits, boxes, cells, strides = [], [], [], []
        for stride, map_ in zip(STRIDES, maps, strict=True):
            height, width = map_.shape[2:]
            rows = map_.float().flatten(2).transpose(1, 2)
            y = (torch.arange(height, device=map_.device) + 0.5) * stride
            x = (torch.arange(width, device=map_.device) + 0.5) * stride
            middle = torch.stack(torch.meshgrid(x, y, indexing="xy"), 2).reshape(-1, 2)
            # Distances from the middle to the four sides; e^0 is one stride.
            reach = rows[..., self.n_found :].clamp(max=6).exp() * stride
            boxes.append(torch.cat([middle - reach[..., :2], middle + reach[..., 2:]], 2))
            logits.append(rows[..., : self.n_found])
            cells.append(middle)
            strides.append(torch.full((len(middle),), float(stride), device=map_.device))
        return torch.cat(logits, 1), torch.cat(boxes, 1), torch.cat(cells), torch.cat(strides)


def _owners(cells: Tensor, strides: Tensor, boxes: Tensor) -> Tensor:
    """Index of the box that each of P cells is to find, int64 (P,); -1 for none.

    Cells inside a box and near its middle find it, on the scale for boxes of its size; where boxes
    share a cell, the smallest has it.
    """
    if not len(boxes):
        return torch.full((len(cells),), -1, dtype=torch.int64, device=cells.device)
    inside = torch.cat([cells[:, None] - boxes[:, :2], boxes[:, 2:] - cells[:, None]], 2) > 0
    middle = (boxes[:, :2] + boxes[:, 2:]) / 2
    away = (cells[:, None] - middle).abs().amax(2) / strides[:, None]
    side = (boxes[:, 2:] - boxes[:, :2]).amax(1)
    limits = torch.tensor((0.0, *_LARGEST_SIDE), device=boxes.device)
    scale = (strides[:, None] == torch.tensor(STRIDES, device=boxes.device)).int().argmax(1)
    fits = (side > limits[scale, None]) & (side <= limits[scale + 1, None])
    free = inside.all(2) & (away <= _CENTRE) & fits
    size = torch.where(free, areas(boxes), torch.inf)
    smallest, owner = size.min(1)
    return torch.where(smallest.isfinite(), owner, -1)


def fcos_small(n_classes: int = 11, in_channels: int = 1) -> Detector:
    """A detector of 18 M MACs at 64 x 64; its classes count the background, as torchvision's do."""
    return Detector(n_classes, in_channels)
