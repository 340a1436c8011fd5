"""Small networks and data on which contracts are tested, and ways to count what a network does."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

EXAMPLE = torch.zeros(1, 3, 8, 8)
"""An input of every network here."""

CLASSES = 4
"""How many logits they return."""

Data = list[tuple[Tensor, Tensor]]
"""Batches of images, shape (n, 3, 8, 8), and labels, shape (n)."""


def plain() -> nn.Module:
    """Return two convolutions and two linear layers in a row."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, CLASSES),
    )


class Residual(nn.Module):
    """A network with a residual add, in place, after a call of a method of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits, shape (n, CLASSES)."""
        x = F.relu(self.bn0(self.conv_in(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += F.pad(x[..., ::1], (0, 0, 0, 0))
        x = F.relu(self.bn3(self.conv3(F.relu(y))))
        logits: Tensor = self.head(x.mean((2, 3)))
        return logits

    def conv_in(self, x: Tensor) -> Tensor:
        """Return what the first layer makes of an image."""
        features: Tensor = self.stem(x)
        return features


def depthwise() -> nn.Module:
    """Return depthwise and pointwise convolutions with batch norms."""

    def block(i: int, o: int) -> list[nn.Module]:
        return [
            nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False),
            nn.BatchNorm2d(i),
            nn.ReLU6(),
            nn.Conv2d(i, o, 1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU6(),
        ]

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        *block(16, 24),
        *block(24, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "plain": plain,
    "residual": Residual,
    "depthwise": depthwise,
}
"""Name -> factory."""


def make_data(n: int, seed: int) -> Data:
    """Return images whose class is a brightness pattern, in batches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    images = torch.randn(n, 3, 8, 8, generator=generator)
    for k in range(CLASSES):
        images[labels == k, :, 2 * k : 2 * k + 2] += 1.5
    return list(zip(torch.split(images, 32), torch.split(labels, 32), strict=True))


def make_model(name: str) -> nn.Module:
    """Return a network with a few steps of training, so that its accuracy says something."""
    return copy.deepcopy(_trained(name))


@functools.cache
def _trained(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for images, labels in make_data(512, 1) * 2:
        loss = F.cross_entropy(model(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    return model


def count_macs(model: nn.Module) -> int:
    """Return the multiply-adds of one image, by watching what really runs."""
    total = 0

    def watch(module: nn.Module, _: object, output: Tensor) -> None:
        nonlocal total
        assert isinstance(module, nn.Conv2d | nn.Linear)
        total += output[0].numel() // len(module.weight) * module.weight.numel()

    hooks = [
        m.register_forward_hook(watch)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(EXAMPLE)
    for hook in hooks:
        hook.remove()
    return total


def accuracy_of(model: nn.Module, data: Data) -> float:
    """Return the share of images that the network itself gets right, in one plain pass."""
    right = total = 0
    with torch.no_grad():
        for images, labels in data:
            right += int((model.eval()(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


class Interrupted:
    """Batches that end in an interruption in the middle of the given epoch; None never does."""

    def __init__(self, batches: Data, stop_at: int | None) -> None:
        self.batches, self.stop_at, self.epoch = batches, stop_at, 0

    def set_epoch(self, epoch: int) -> None:
        """Take the number of the epoch that comes."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for index, batch in enumerate(self.batches):
            if self.epoch == self.stop_at and index == 1:
                raise KeyboardInterrupt
            yield batch
