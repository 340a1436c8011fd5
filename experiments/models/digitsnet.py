"""A network for 8 x 8 images that trains in seconds and has every tie a pruner meets in ResNets.

Identity and option-A shortcuts tie channels across layers, a depthwise convolution ties its input
to its output, and the inner channels of each block are free: eight channel groups.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from amc_compress.models.mobilenet import conv_bn
from amc_compress.models.resnet import BasicBlock


class DigitsNet(nn.Module):
    """Stem 16, two blocks of 16, two of 32, depthwise-separable step to 64, one block, linear."""

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.stem = conv_bn(in_channels, 16, 3)
        self.stage1 = nn.Sequential(BasicBlock(16, 16), BasicBlock(16, 16))
        self.stage2 = nn.Sequential(BasicBlock(16, 32, stride=2), BasicBlock(32, 32))
        self.depthwise = conv_bn(32, 32, 3, stride=2, groups=32)
        self.pointwise = conv_bn(32, 64, 1)
        self.stage3 = BasicBlock(64, 64)
        self.linear = nn.Linear(64, n_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, H, W)."""
        x = self.stage2(self.stage1(self.stem(x)))
        x = self.stage3(self.pointwise(self.depthwise(x)))
        x = functional.adaptive_avg_pool2d(x, 1).flatten(1)
        logits: Tensor = self.linear(x)
        return logits


def digitsnet(n_classes: int = 10, in_channels: int = 1) -> DigitsNet:
    """The default network of the digits task: 1.4 M MACs at 8 x 8."""
    return DigitsNet(n_classes, in_channels)
