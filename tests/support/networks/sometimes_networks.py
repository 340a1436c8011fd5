"""Networks with code that runs only sometimes: in training, for some images, at some sizes."""

from __future__ import annotations

import random
from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def conv(n_in: int, n_out: int, k: int = 3) -> nn.Conv2d:
    return nn.Conv2d(n_in, n_out, k, padding=k // 2)


class Trunk(nn.Module):
    """Two convolutions and a classifier; subclasses put something between or next to them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = conv(3, 8), conv(8, 6), nn.Linear(6, 4)

    def classify(self, z: Tensor) -> Tensor:
        return self.head(self.b(z).relu().mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.a(x).relu())


class AuxiliaryHead(Trunk):
    """GoogLeNet: a second classifier, with a layer and a norm of its own, only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.aux = nn.Sequential(conv(8, 5, 1), nn.BatchNorm2d(5), nn.ReLU())
        self.aux_head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        z = self.a(x).relu()
        out = self.classify(z)
        return (out, self.aux_head(self.aux(z).mean((2, 3)))) if self.training else out


class DepthwiseAuxiliary(Trunk):
    """A depthwise layer that only training runs, added to the features."""

    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.Conv2d(8, 8, 3, padding=1, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return self.classify(z + self.extra(z) if self.training else z)


class DeepSupervision(Trunk):
    """Losses of middle layers, in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor | dict[str, Tensor]:
        z = self.a(x).relu()
        y = self.b(z).relu()
        out = self.head(y.mean((2, 3)))
        if not self.training:
            return out
        return {"logits": out, "z": self.first(z.mean((2, 3))), "y": self.second(y.mean((2, 3)))}


class TwoExperts(Trunk):
    """The data decide by a comparison."""

    def __init__(self) -> None:
        super().__init__()
        self.dark = nn.Sequential(conv(8, 7), nn.ReLU(), conv(7, 8))
        self.bright = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return self.classify(self.bright(z) if x.mean() > 0 else self.dark(z))


class NumberedExperts(Trunk):
    """The data decide by an index that no usual image takes."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(conv(8, 8) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        number = int((x.mean() > 1e3).long() + (x.mean() > 1e6).long())
        return self.classify(self.experts[number](self.a(x).relu()))


class EarlyExit(Trunk):
    """A confident image leaves early."""

    def __init__(self) -> None:
        super().__init__()
        self.exit = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        early = self.exit(z.mean((2, 3)))
        if not self.training and early.softmax(1).max() > 0.999:
            return early
        return self.classify(z)


class BySize(Trunk):
    """Large images pass a layer more."""

    def __init__(self) -> None:
        super().__init__()
        self.large = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return self.classify(self.large(z) if x.shape[-1] > 20 else z)


class Dropped(Trunk):
    """Every way to drop."""

    def forward(self, x: Tensor) -> Tensor:
        z = F.dropout(self.a(x).relu(), 0.3, self.training)
        z = F.dropout2d(z, 0.4, self.training)
        z = F.alpha_dropout(z, 0.1, self.training)
        if self.training:  # by hand, per image
            z = z * (torch.rand(len(z), 1, 1, 1) + 0.8).floor() / 0.8
        return self.classify(z)


class StochasticDepth(Trunk):
    """Residual branches that chance skips in training, by a tensor and by a number."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = conv(8, 8), conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        if not self.training or torch.rand(1) < 0.5:
            z = z + self.left(z)
        if not self.training or random.random() < 0.5:
            z = z + self.right(z)
        return self.classify(z)


class Noisy(Trunk):
    """Noise in both modes."""

    def forward(self, x: Tensor) -> Tensor:
        z = self.a(x).relu()
        return self.classify(z + 0.1 * torch.randn_like(z))


class Normed(Trunk):
    """Batch statistics in training."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.norm(self.a(x)).relu())


class Guarded(Trunk):
    """A check of the data that nothing passes the other way."""

    def forward(self, x: Tensor) -> Tensor:
        if torch.isnan(x).any():
            raise ValueError("no numbers")
        return super().forward(x)


class Detector(Trunk):
    """Boxes over a threshold, none on some images."""

    threshold = 0.0

    def forward(self, x: Tensor) -> Tensor:
        z = self.b(self.a(x).relu()).flatten(2).transpose(1, 2).relu()
        boxes = self.head(z).flatten(0, 1)
        return boxes[boxes[:, 0] > self.threshold]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    cls.__name__: cls
    for cls in (
        AuxiliaryHead, DepthwiseAuxiliary, DeepSupervision, TwoExperts, NumberedExperts, EarlyExit,
        BySize, Dropped, StochasticDepth, Noisy, Normed, Guarded, Detector,
    )
}  # fmt: skip
