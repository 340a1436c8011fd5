"""Small networks and batches of every task."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

VOCABULARY = 11
UNEVEN = (1, 4, 2, 6, 1)
SIDE = 8


def seeded(build: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return build()


def images(samples: int, seed: int) -> Tensor:
    return torch.randn(samples, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(seed))


def whole(high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed + 100))


def vectors(width: int) -> nn.Module:
    """Images to vectors."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(32, width),
    )


def pixels(channels: int) -> nn.Module:
    """Images to a vector for each pixel."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Dropout(0.5), nn.Conv2d(8, channels, 1)
    )


class Tokens(nn.Module):
    """Token ids, and a mask by name, to an object with logits or hidden states of each token."""

    def __init__(self, width: int, *, key: str = "logits", causal: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, 12)
        self.recurrent = nn.GRU(12, 12, batch_first=True)
        self.head = nn.Linear(12, width)
        self.key = key

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        hidden = self.embedding(input_ids)
        if attention_mask is not None:
            hidden = hidden * attention_mask[:, :, None]
        return {self.key: self.head(self.recurrent(hidden)[0]), "loss": None}


class Detector(nn.Module):
    """A box and the classes for each of four cells, by torchvision's convention."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
        )
        self.head = nn.Conv2d(8, 4 + 1 + classes, 1)

    def maps(self, images: Any) -> Tensor:
        stacked = images if isinstance(images, Tensor) else torch.stack(list(images))
        found: Tensor = self.head(self.body(stacked)).flatten(2).transpose(1, 2)
        return found

    def forward(self, images: Any, targets: Any = None) -> Any:
        maps = self.maps(images)
        corners = maps[..., :2].sigmoid() * SIDE / 2
        boxes = torch.cat([corners, corners + 1 + maps[..., 2:4].sigmoid() * SIDE / 2], dim=-1)
        scores = maps[..., 4].sigmoid()
        if self.training:
            wanted = torch.tensor([float(len(t["boxes"])) for t in targets])
            return {
                "boxes": (boxes - SIDE / 2).square().mean(),
                "scores": (scores.sum(1) - wanted).square().mean(),
            }
        # Sorted by score, and those below a threshold left out: the order depends on the input.
        found = []
        for box, score, row in zip(boxes, scores, maps, strict=True):
            order = score.argsort(descending=True)
            order = order[score[order] > 0.3]
            labels = row[order, 5:].argmax(-1) + 1
            found.append({"boxes": box[order], "scores": score[order], "labels": labels})
        return found


def boxes_of(samples: int, seed: int) -> list[dict[str, Tensor]]:
    """Targets of images, the last one without a box."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for k in range(samples):
        n = 0 if k == samples - 1 and samples > 1 else 1 + k % 3
        corners = torch.rand(n, 2, generator=generator) * SIDE / 2
        sizes = 1 + torch.rand(n, 2, generator=generator) * SIDE / 2
        labels = torch.randint(1, 3, (n,), generator=generator)
        found.append({"boxes": torch.cat([corners, corners + sizes], 1), "labels": labels})
    return found


def measured(task: Any, outputs: Any, targets: Any, sizes: tuple[int, ...] = UNEVEN) -> Any:
    """All metrics, over uneven batches."""
    meter = task.meter(reported=True)
    start = 0
    for size in sizes:
        part = slice(start, start + size)
        meter.update(outputs[part], targets[part])
        start += size
    assert start == len(outputs)
    return meter.compute()


def detections_of(targets: list[dict[str, Tensor]], seed: int) -> list[dict[str, Tensor]]:
    """Boxes near those of the targets, some more, some of another class, some missing."""
    rng = np.random.default_rng(seed)
    found = []
    for target in targets:
        boxes, labels = [], []
        for box, label in zip(target["boxes"].tolist(), target["labels"].tolist(), strict=True):
            for _ in range(rng.integers(0, 3)):
                boxes.append(np.array(box) + rng.normal(0, 0.25, 4))
                labels.append(label if rng.random() < 0.8 else 3 - label)
        boxes += [np.array([1.0, 1.0, 3.0, 4.0])] * int(rng.integers(0, 2))
        labels += [1] * (len(boxes) - len(labels))
        found.append(
            {
                "boxes": torch.tensor(np.array(boxes)).reshape(-1, 4).float(),
                "labels": torch.tensor(labels, dtype=torch.int64),
                "scores": torch.tensor(rng.random(len(boxes))).float(),
            }
        )
    return found
