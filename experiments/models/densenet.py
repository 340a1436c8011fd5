"""DenseNet-40 with growth rate 12, without bottlenecks (Huang et al. 2017, table 2: 1.0 M)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class DenseLayer(nn.Module):
    """BN, ReLU, 3 x 3 convolution to ``growth`` channels, appended to what came in."""

    def __init__(self, in_channels: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C + growth, H, W)."""
        return torch.cat([x, self.conv(functional.relu(self.bn(x)))], dim=1)


class Transition(nn.Module):
    """BN, ReLU, 1 x 1 convolution of the same width, 2 x 2 average pooling."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels)
        self.conv = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H / 2, W / 2)."""
        return functional.avg_pool2d(self.conv(functional.relu(self.bn(x))), 2)


class DenseNet(nn.Module):
    """Stem of 16 channels, three dense blocks of ``layers`` layers, two transitions."""

    def __init__(self, layers: int, growth: int, n_classes: int, in_channels: int) -> None:
        super().__init__()
        width = 16
        self.stem = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        modules: list[nn.Module] = []
        for block in range(3):
            for _ in range(layers):
                modules.append(DenseLayer(width, growth))
                width += growth
            if block < 2:
                modules.append(Transition(width))
        self.features = nn.Sequential(*modules)
        self.bn = nn.BatchNorm2d(width)
        self.classifier = nn.Linear(width, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = functional.relu(self.bn(self.features(self.stem(x))))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def densenet40(n_classes: int = 10, in_channels: int = 3) -> DenseNet:
    """DenseNet-40, k = 12, no compression: 1,019,722 parameters for 10 classes."""
    return DenseNet(12, 12, n_classes, in_channels)
