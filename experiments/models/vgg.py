"""VGG-16 with batch norm and one linear layer, the usual CIFAR form (Simonyan & Zisserman 2015)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class VGG(nn.Module):
    """13 convolutions in five stages (configuration D) with pooling between, global average."""

    STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = in_channels
        for index, stage in enumerate(self.STAGES):
            # The last pooling is the global average, which lets other image sizes through.
            if index > 0:
                layers.append(nn.MaxPool2d(2, ceil_mode=True))
            for out_channels in stage:
                conv = nn.Conv2d(width, out_channels, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out")
                layers.extend([conv, nn.BatchNorm2d(out_channels), nn.ReLU()])
                width = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


def vgg16_bn(n_classes: int = 10, in_channels: int = 3) -> VGG:
    """VGG-16-BN for CIFAR: 14,728,266 parameters for 10 classes."""
    return VGG(n_classes, in_channels)
