"""A network and images on which training takes milliseconds."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_compress.learners.training.config import TrainingConfig

Batches = list[tuple[Tensor, Tensor]]


FAST = TrainingConfig(epochs=4, learning_rate=0.1, precision="fp32")


def network(seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        )


def dropping_network() -> nn.Module:
    """Draws random numbers in training; for images of 6 x 6."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.2),
            nn.Flatten(),
            nn.Linear(128, 2),
        )


def batches(n: int = 96, seed: int = 0) -> Batches:
    """Images whose brightest third is the class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 3, (n,), generator=generator)
    images = 0.5 * torch.randn(n, 1, 6, 6, generator=generator)
    for i, label in enumerate(labels.tolist()):
        images[i, :, 2 * label : 2 * label + 2] += 1.0
    return list(zip(images.split(32), labels.split(32), strict=True))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[key], b[key]) for key in a | b)
