"""Networks for masks and boxes, written as well-known libraries write theirs."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

IMAGE = (3, 64, 64)


def conv(i: int, o: int, k: int = 1, s: int = 1, g: int = 1, d: int = 1) -> nn.Sequential:
    """Returns a convolution, its norm and its activation."""
    return nn.Sequential(
        nn.Conv2d(i, o, k, s, d * (k // 2), d, g, bias=False), nn.BatchNorm2d(o), nn.SiLU()
    )


# ---------------------------------------------------------------------- an Ultralytics-style body


class Bottleneck(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(width, width, 3), conv(width, width, 3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.cv2(self.cv1(x))


class C2f(nn.Module):
    """Splits its channels, sends one half through bottlenecks, and joins all that came by."""

    def __init__(self, i: int, o: int, n: int = 1) -> None:
        super().__init__()
        self.c = o // 2
        self.cv1, self.cv2 = conv(i, 2 * self.c), conv((2 + n) * self.c, o)
        self.m = nn.ModuleList(Bottleneck(self.c) for _ in range(n))

    def forward(self, x: Tensor) -> Tensor:
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) for m in self.m)
        return self.cv2(torch.cat(y, 1))


class SPPF(nn.Module):
    def __init__(self, i: int, o: int) -> None:
        super().__init__()
        self.cv1, self.cv2 = conv(i, i // 2), conv(i * 2, o)
        self.m = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.cv1(x)
        y1 = self.m(x)
        y2 = self.m(y1)
        return self.cv2(torch.cat((x, y1, y2, self.m(y2)), 1))


class DFL(nn.Module):
    """Turns a distribution over distances into their mean."""

    def __init__(self, bins: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(bins, 1, 1, bias=False).requires_grad_(False)
        self.conv.weight.data[:] = torch.arange(bins, dtype=torch.float).view(1, bins, 1, 1)
        self.bins = bins

    def forward(self, x: Tensor) -> Tensor:
        b, _, a = x.shape
        return self.conv(x.view(b, 4, self.bins, a).transpose(2, 1).softmax(1)).view(b, 4, a)


class Detect(nn.Module):
    def __init__(self, classes: int, widths: tuple[int, ...], bins: int = 8) -> None:
        super().__init__()
        self.nc, self.reg_max, self.no = classes, bins, classes + 4 * bins
        self.cv2 = nn.ModuleList(
            nn.Sequential(conv(w, 16, 3), conv(16, 16, 3), nn.Conv2d(16, 4 * bins, 1))
            for w in widths
        )
        self.cv3 = nn.ModuleList(
            nn.Sequential(conv(w, 16, 3), conv(16, 16, 3), nn.Conv2d(16, classes, 1))
            for w in widths
        )
        self.dfl = DFL(bins)

    def forward(self, x: list[Tensor]) -> tuple[Tensor, list[Tensor]] | list[Tensor]:
        x = list(x)
        for i in range(len(x)):
            x[i] = torch.cat((self.cv2[i](x[i]), self.cv3[i](x[i])), 1)
        if self.training:
            return x
        joined = torch.cat([xi.view(x[0].shape[0], self.no, -1) for xi in x], 2)
        box, cls = joined.split((self.reg_max * 4, self.nc), 1)
        return torch.cat((self.dfl(box), cls.sigmoid()), 1), x


class Yolo(nn.Module):
    """Layers in a list, each with the numbers of those that it reads."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.model = nn.ModuleList(
            [
                conv(3, 16, 3, 2), conv(16, 16, 3, 2), C2f(16, 16), conv(16, 32, 3, 2),
                C2f(32, 32, 2), conv(32, 32, 3, 2), SPPF(32, 32), nn.Upsample(scale_factor=2.0),
                C2f(64, 32), conv(32, 32, 3, 2), C2f(64, 32), Detect(classes, (32, 32)),
            ]
        )  # fmt: skip
        self.reads = {8: (7, 4), 10: (9, 6), 11: (8, 10)}

    def forward(self, x: Tensor) -> object:
        kept: list[Tensor] = []
        for number, layer in enumerate(self.model):
            if number in self.reads:
                read = [kept[i] for i in self.reads[number]]
                x = layer(read) if isinstance(layer, Detect) else layer(torch.cat(read, 1))
            else:
                x = layer(x)
            kept.append(x)
        return x


# ---------------------------------------------------------------------- others


class Ssd(nn.Module):
    """Single-shot detection: boxes and classes from maps of several scales."""

    def __init__(self, classes: int = 4, anchors: int = 3) -> None:
        super().__init__()
        self.classes = classes
        self.stem = nn.Sequential(conv(3, 16, 3, 2), conv(16, 24, 3, 2))
        self.extra = nn.ModuleList([conv(24, 32, 3, 2), conv(32, 24, 3, 2)])
        self.boxes = nn.ModuleList(nn.Conv2d(w, 4 * anchors, 3, 1, 1) for w in (24, 32, 24))
        self.scores = nn.ModuleList(nn.Conv2d(w, classes * anchors, 3, 1, 1) for w in (24, 32, 24))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = [self.stem(x)]
        for layer in self.extra:
            maps.append(layer(maps[-1]))

        def rows(heads: nn.ModuleList, width: int) -> Tensor:
            found = [
                head(m).permute(0, 2, 3, 1).reshape(len(x), -1, width)
                for head, m in zip(heads, maps, strict=True)
            ]
            return torch.cat(found, 1)

        return {"boxes": rows(self.boxes, 4), "scores": rows(self.scores, self.classes)}


class DeepLab(nn.Module):
    """Atrous convolutions, a pyramid of them with a pooled branch, and a decoder with a skip."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.low, self.deep = (
            conv(3, 16, 3, 2),
            nn.Sequential(conv(16, 32, 3, 2), conv(32, 32, 3, d=2)),
        )
        self.branches = nn.ModuleList([conv(32, 16), *(conv(32, 16, 3, d=d) for d in (2, 4))])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(32, 16, 1), nn.ReLU())
        self.project, self.side = conv(64, 24), conv(16, 8)
        self.decode, self.leave = conv(32, 16, 3), nn.Conv2d(16, classes, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        low = self.low(x)
        deep = self.deep(low)
        pooled = F.interpolate(self.pooled(deep), size=deep.shape[-2:], mode="nearest")
        y = self.project(torch.cat([*(b(deep) for b in self.branches), pooled], 1))
        y = F.interpolate(y, size=low.shape[-2:], mode="bilinear", align_corners=False)
        y = self.leave(self.decode(torch.cat((y, self.side(low)), 1)))
        return {"out": F.interpolate(y, size=x.shape[-2:], mode="bilinear", align_corners=False)}


class Fpn(nn.Module):
    """A feature pyramid with lateral sums, and one head for all its maps (RetinaNet, FCOS)."""

    def __init__(self, classes: int = 4) -> None:
        super().__init__()
        self.stages = nn.ModuleList([conv(3, 16, 3, 2), conv(16, 24, 3, 2), conv(24, 32, 3, 2)])
        self.inner = nn.ModuleList(nn.Conv2d(w, 16, 1) for w in (16, 24, 32))
        self.outer = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3))
        self.tower = nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.GroupNorm(4, 24), nn.ReLU())
        self.classes, self.boxes = nn.Conv2d(24, classes, 1), nn.Conv2d(24, 4, 1)
        self.scales = nn.ParameterList(torch.ones(()) for _ in range(3))

    def forward(self, x: Tensor) -> list[tuple[Tensor, Tensor]]:
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        last = self.inner[-1](maps[-1])
        results = [self.outer[-1](last)]
        for i in (1, 0):
            last = self.inner[i](maps[i]) + F.interpolate(last, size=maps[i].shape[-2:])
            results.insert(0, self.outer[i](last))
        found = []
        for scale, level in zip(self.scales, results, strict=True):
            y = self.tower(level)
            found.append((self.classes(y), (self.boxes(y) * scale).exp()))
        return found


NETWORKS: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "yolo": (Yolo, 0.1),
    "ssd": (Ssd, 0.1),
    "deeplab": (DeepLab, 0.05),
    "fpn": (Fpn, 0.15),
}
"""Name -> network, and a share of its multiply-adds that can be reached."""
