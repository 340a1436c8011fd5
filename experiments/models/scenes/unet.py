"""A U-Net (Ronneberger et al. 2015) of three scales for images of 64 x 64 pixels.

Its stem has a stride of 2: the finest scale has half the image's side, and a last transposed
convolution leads back to all pixels. Every step up is a transposed convolution, next to whose
output the features of the same scale are laid.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_compress.models.mobilenet import conv_bn

_BACKGROUND = 4.5  # logit: about 90% for it, next to ten other classes


class UNet(nn.Module):
    """Widths 16, 32, 64 on the way down; sides must be multiples of 8 pixels."""

    def __init__(self, n_classes: int, in_channels: int) -> None:
        super().__init__()
        self.down1 = nn.Sequential(conv_bn(in_channels, 16, 3, stride=2), conv_bn(16, 16, 3))
        self.down2 = nn.Sequential(conv_bn(16, 32, 3, stride=2), conv_bn(32, 32, 3))
        self.down3 = nn.Sequential(conv_bn(32, 64, 3, stride=2), conv_bn(64, 64, 3))
        self.up2 = _up(64, 32)
        self.merge2 = conv_bn(64, 32, 3)
        self.up1 = _up(32, 16)
        self.merge1 = conv_bn(32, 16, 3)
        self.up0 = _up(16, 16)
        self.classify = nn.Conv2d(16, n_classes, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
        _start_with_background(self.classify)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits of every pixel (N, n_classes, H, W) of images (N, C, H, W)."""
        fine = self.down1(x)
        middle = self.down2(fine)
        coarse = self.down3(middle)
        middle = self.merge2(torch.cat([middle, self.up2(coarse)], 1))
        fine = self.merge1(torch.cat([fine, self.up1(middle)], 1))
        logits: Tensor = self.classify(self.up0(fine))
        return logits


def _up(in_channels: int, out_channels: int) -> nn.Sequential:
    """Transposed convolution to twice the side, batch norm and ReLU."""
    return nn.Sequential(
        nn.ConvTranspose2d(in_channels, out_channels, 2, stride=2, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


def _start_with_background(layer: nn.Conv2d) -> None:
    """Lets a classifier say "background" at first, so that its loss is that of the other classes.

    Most pixels are background; with any other start their gradient drowns the rest.
    """
    nn.init.normal_(layer.weight, std=0.01)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
        nn.init.constant_(layer.bias[:1], _BACKGROUND)


def unet_small(n_classes: int = 11, in_channels: int = 1) -> UNet:
    """A segmentation network of 22 M MACs at 64 x 64; class 0 is the background."""
    return UNet(n_classes, in_channels)
