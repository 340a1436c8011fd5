"""MobileNet V1 (Howard et al. 2017) and V2 (Sandler et al. 2018) for 32 x 32 images.

The widths are the papers'. V1 loses the stride of its stem, V2 those of its stem and of its second
stage, so that 32 x 32 images end at 2 x 2 and 4 x 4 features. ``mobilenet_v2_fast`` keeps the
stride of the stem: the same weights, a quarter of the multiply-adds.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel: int,
    stride: int = 1,
    groups: int = 1,
    activation: type[nn.Module] | None = nn.ReLU,
) -> nn.Sequential:
    """Convolution (same size at stride 1), batch norm and, unless None, activation."""
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False
        ),
        nn.BatchNorm2d(out_channels),
    ]
    if activation is not None:
        layers.append(activation())
    return nn.Sequential(*layers)


class MobileNetV1(nn.Module):
    """A stem and 13 depthwise-separable layers."""

    # (output channels, stride) of each pair: depthwise 3 x 3, pointwise 1 x 1 (table 1)
    LAYERS = (
        (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2),
        (512, 1), (512, 1), (512, 1), (512, 1), (512, 1), (1024, 2), (1024, 1),
    )  # fmt: skip

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(in_channels, 32, 3)]
        width = 32
        for out_channels, stride in self.LAYERS:
            layers.append(conv_bn(width, width, 3, stride, groups=width))
            layers.append(conv_bn(width, out_channels, 1))
            width = out_channels
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width, n_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(x)
        return logits


class InvertedResidual(nn.Module):
    """Widen by 1 x 1, filter by depthwise 3 x 3, narrow linearly by 1 x 1 (V2 paper, table 1)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        hidden = in_channels * expansion
        layers: list[nn.Module] = []
        if expansion != 1:
            layers.append(conv_bn(in_channels, hidden, 1, activation=nn.ReLU6))
        layers.append(conv_bn(hidden, hidden, 3, stride, groups=hidden, activation=nn.ReLU6))
        layers.append(conv_bn(hidden, out_channels, 1, activation=None))
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = self.layers(x)
        return x + out if self.residual else out


class MobileNetV2(nn.Module):
    """A stem, 17 inverted residuals and a 1 x 1 convolution to 1,280 channels."""

    # (expansion, output channels, repeats, stride of the first) of each stage (table 2)
    STAGES = (
        (1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2),
        (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1),
    )  # fmt: skip

    def __init__(self, n_classes: int, in_channels: int, stem_stride: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [conv_bn(in_channels, 32, 3, stem_stride, activation=nn.ReLU6)]
        width = 32
        for expansion, out_channels, repeats, stride in self.STAGES:
            for index in range(repeats):
                step = stride if index == 0 else 1
                layers.append(InvertedResidual(width, out_channels, step, expansion))
                width = out_channels
        layers.append(conv_bn(width, 1280, 1, activation=nn.ReLU6))
        self.features = nn.Sequential(*layers)
        self.dropout = nn.Dropout(0.2)
        self.classifier = nn.Linear(1280, n_classes)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = functional.adaptive_avg_pool2d(self.features(x), 1).flatten(1)
        logits: Tensor = self.classifier(self.dropout(x))
        return logits


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out")
        elif isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)


def mobilenet_v1(n_classes: int = 10, in_channels: int = 3) -> MobileNetV1:
    """MobileNet V1, width 1: 3,217,226 parameters for 10 classes."""
    return MobileNetV1(n_classes, in_channels)


def mobilenet_v2(n_classes: int = 10, in_channels: int = 3) -> MobileNetV2:
    """MobileNet V2, width 1: 2,236,682 parameters for 10 classes."""
    return MobileNetV2(n_classes, in_channels)


def mobilenet_v2_fast(n_classes: int = 10, in_channels: int = 3) -> MobileNetV2:
    """MobileNet V2 with the paper's stem stride of 2: as many parameters, a quarter of the MACs."""
    return MobileNetV2(n_classes, in_channels, stem_stride=2)
