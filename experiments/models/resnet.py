"""CIFAR ResNets with parameter-free shortcuts, and the same networks without any (He et al. 2016).

6n + 2 layers in three stages of widths 16, 32, 64 (section 4.2). ``state_dict`` keys are those of
the public repository akamaster/pytorch_resnet_cifar10, so its checkpoints load as they are.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class PadShortcut(nn.Module):
    """Option A: every second pixel, and zero channels on both sides up to the new width."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, ceil(H / stride), ceil(W / stride))."""
        x = x[:, :, :: self.stride, :: self.stride]
        return functional.pad(x, (0, 0, 0, 0, self.before, self.after))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions, with the shortcut around them unless ``residual`` is off."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: int = 1, residual: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.shortcut: nn.Module | None = None
        if residual:
            same = stride == 1 and in_channels == out_channels
            self.shortcut = (
                nn.Identity() if same else PadShortcut(in_channels, out_channels, stride)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(N, in, H, W) -> (N, out, H / stride, W / stride)."""
        out: Tensor = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.shortcut is not None:
            out = out + self.shortcut(x)
        return functional.relu(out)


class CifarResNet(nn.Module):
    """Stem, three stages of ``blocks`` basic blocks, global average, linear layer."""

    def __init__(
        self, blocks: int, n_classes: int = 10, in_channels: int = 3, residual: bool = True
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = _stage(16, 16, blocks, 1, residual)
        self.layer2 = _stage(16, 32, blocks, 2, residual)
        self.layer3 = _stage(32, 64, blocks, 2, residual)
        self.linear = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def _stage(
    in_channels: int, out_channels: int, blocks: int, stride: int, residual: bool
) -> nn.Sequential:
    first = BasicBlock(in_channels, out_channels, stride, residual)
    rest = [BasicBlock(out_channels, out_channels, 1, residual) for _ in range(blocks - 1)]
    return nn.Sequential(first, *rest)


def plain20(n_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """20 layers without shortcuts: 269,722 parameters, 40.55 M MACs at 32 x 32."""
    return CifarResNet(3, n_classes, in_channels, residual=False)


def resnet20(n_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """20 layers: 269,722 parameters, 40.55 M MACs at 32 x 32."""
    return CifarResNet(3, n_classes, in_channels)


def resnet32(n_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """32 layers: 464,154 parameters, 68.9 M MACs at 32 x 32."""
    return CifarResNet(5, n_classes, in_channels)


def resnet56(n_classes: int = 10, in_channels: int = 3) -> CifarResNet:
    """56 layers: 853,018 parameters, 125.5 M MACs at 32 x 32."""
    return CifarResNet(9, n_classes, in_channels)
