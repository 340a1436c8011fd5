"""Residual networks, each written with a switch per branch: what leaving one out must equal."""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

CLASSES = 4


class Switched(nn.Module):
    """Adds what its branches return, unless they are switched off by name."""

    def __init__(self) -> None:
        super().__init__()
        self.off: frozenset[str] = frozenset()


class ConvBlock(Switched):
    """Two convolutions and norms; the sum is written in place, and so is the rectifier."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(width, inner, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner)
        self.act = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(inner, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        if "all" in self.off:
            return F.relu(x)
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        y += x
        return F.relu(y)


class Nested(Switched):
    """A residual branch with another one within it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(width, width, 1)
        self.inner = nn.Conv2d(width, width, 1)
        self.last = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        if "all" in self.off:
            return x
        y = torch.tanh(self.first(x))
        if "inner" not in self.off:
            y = y + self.inner(y)
        return x + self.last(torch.tanh(y))


class Attention(nn.Module):
    """Two heads, projections of their own, and a tuple for a result."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> tuple[Tensor, None]:
        n, tokens, width = x.shape
        q, k, v = (f(x).view(n, tokens, 2, -1).transpose(1, 2) for f in (self.q, self.k, self.v))
        y = F.scaled_dot_product_attention(q, k, v, mask)
        return self.o(y.transpose(1, 2).reshape(n, tokens, width)), None


class Encoder(Switched):
    """A transformer's block, norms first."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width)
        self.drop = nn.Dropout(0.1)
        self.mlp = nn.Sequential(nn.Linear(width, 12), nn.GELU(), nn.Linear(12, width))

    def forward(self, x: Tensor) -> Tensor:
        if "attention" not in self.off:
            x = x + self.drop(self.attention(x=self.norm1(x))[0])
        return x if "mlp" in self.off else x + self.mlp(self.norm2(x))


class Images(nn.Module):
    """A stem, a residual block of convolutions, a nested one, and a head; of 8 x 8 pixels."""

    def __init__(self, n_classes: int = CLASSES, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(in_channels, 8, 3, padding=1)
        self.block = ConvBlock(8, 12)
        self.nested = Nested(8)
        self.head = nn.Linear(8, n_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.nested(self.block(self.stem(x))).mean((2, 3)))


class Tokens(nn.Module):
    """An embedding, a transformer's block, and a head; of tokens below 11."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8)
        self.layer = Encoder(8)
        self.head = nn.Linear(8, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(self.table(x)).mean(1))


class Whole(nn.Module):
    """Branches that cannot be left out: read elsewhere, computed in place, shared."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 6)
        self.read = nn.Linear(6, 6)
        self.scaled = nn.Linear(6, 6)
        self.scale = nn.Parameter(torch.full((6,), 0.5))
        self.shared = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        y = self.read(torch.tanh(x))
        x = x + y
        x = x + self.scale * self.scaled(torch.tanh(x))
        x = x + self.shared(torch.tanh(x))
        return self.shared(x), y


SWITCHES = {
    "block": ("block", "all"),
    "nested": ("nested", "all"),
    "nested.inner": ("nested", "inner"),
    "layer.attention": ("layer", "attention"),
    "layer.mlp": ("layer", "mlp"),
}
"""Branch -> its module, and the name of its switch there."""


def switched(network: nn.Module, *branches: str) -> nn.Module:
    """Switches branches off, in place."""
    for name in branches:
        owner, switch = SWITCHES[name]
        module = network.get_submodule(owner)
        module.off |= {switch}  # type: ignore[operator]
    return network


def digits(n_classes: int = 10) -> nn.Module:
    """Returns one of these for the images of digits."""
    return Images(n_classes, in_channels=1)
