"""LeNet-5 (LeCun et al. 1998), as it is usually written today: ReLU and max pooling."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from amc_env.errors import InputDataError


class LeNet(nn.Module):
    """Two 5 x 5 convolutions, three linear layers; 61,706 parameters for 28 x 28 x 1, 10 classes.

    The first convolution pads by 2, so that 28 x 28 images give the paper's 16 x 5 x 5 features.
    The first linear layer fixes the image size, hence ``image_size``.
    """

    def __init__(self, n_classes: int, in_channels: int, image_size: int) -> None:
        super().__init__()
        # Images as small as 8 x 8 leave nothing for an unpadded second convolution.
        second_padding = 0 if image_size >= 16 else 2
        side = (image_size // 2 - 4 + 2 * second_padding) // 2
        if side < 1:
            raise InputDataError(
                f"LeNet pools twice and needs images of at least 4 x 4 pixels, got {image_size} x "
                f"{image_size}: choose another model."
            )
        self.conv1 = nn.Conv2d(in_channels, 6, 5, padding=2)
        self.conv2 = nn.Conv2d(6, 16, 5, padding=second_padding)
        self.fc1 = nn.Linear(16 * side * side, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (N, n_classes) of images (N, C, image_size, image_size)."""
        x = functional.max_pool2d(functional.relu(self.conv1(x)), 2)
        x = functional.max_pool2d(functional.relu(self.conv2(x)), 2)
        x = x.flatten(1)
        x = functional.relu(self.fc1(x))
        x = functional.relu(self.fc2(x))
        logits: Tensor = self.fc3(x)
        return logits


def lenet(n_classes: int = 10, in_channels: int = 1, image_size: int | None = None) -> LeNet:
    """LeNet-5; ``image_size`` defaults to 28 for one channel (MNIST) and 32 for three (CIFAR)."""
    if image_size is None:
        image_size = 28 if in_channels == 1 else 32
    return LeNet(n_classes, in_channels, image_size)
