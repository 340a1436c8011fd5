"""Small networks whose channels are normalised over, or whose weights are standardised."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDTH = 12


class MeanNorm(nn.Module):
    """A root-mean-square norm over the last axis, written by hand."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class VarianceNorm(nn.Module):
    """A layer norm over channels of images, by mean and variance, as in ConvNeXt's own code."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1.5, width))
        self.bias = nn.Parameter(torch.linspace(-0.5, 0.5, width))

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + 1e-6)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class GlobalResponseNorm(nn.Module):
    """ConvNeXt V2's: each channel by its share of the mean response; channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.linspace(-1, 1, width).view(1, 1, 1, -1))
        self.beta = nn.Parameter(torch.linspace(1, 0, width).view(1, 1, 1, -1))

    def forward(self, x: Tensor) -> Tensor:
        response = torch.norm(x, p=2, dim=(1, 2), keepdim=True)
        share = response / (response.mean(dim=-1, keepdim=True) + 1e-6)
        return self.gamma * (x * share) + self.beta + x


class ConvNeXt(nn.Module):
    """A stem, two blocks with global response norms, and a norm before the classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, WIDTH, 4, 4), VarianceNorm(WIDTH)
        self.blocks = nn.ModuleList(ConvNeXtBlock() for _ in range(2))
        self.last, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return self.head(self.last(x.mean((2, 3))))


class ConvNeXtBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(WIDTH, WIDTH, 3, 1, 1, groups=WIDTH)
        self.norm = nn.LayerNorm(WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)
        self.response = GlobalResponseNorm(20)
        self.scale = nn.Parameter(torch.linspace(0.2, 0.9, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.spatial(x).permute(0, 2, 3, 1))
        y = self.scale * self.narrow(self.response(F.gelu(self.wide(y))))
        return x + y.permute(0, 3, 1, 2)


class PoolFormer(nn.Module):
    """Tokens mixed by a pool; norms over all channels and pixels of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 4, 4)
        self.first, self.second = nn.GroupNorm(1, WIDTH), nn.GroupNorm(1, WIDTH)
        self.pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
        self.wide, self.narrow = nn.Conv2d(WIDTH, 20, 1), nn.Conv2d(20, WIDTH, 1)
        self.scale = nn.Parameter(torch.linspace(0.2, 0.9, WIDTH))
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.first(x)
        x = x + self.scale[:, None, None] * (self.pool(y) - y)
        x = x + self.narrow(F.gelu(self.wide(self.second(x))))
        return self.head(x.mean((2, 3)))


class Attention(nn.Module):
    """Four heads whose queries and keys are normalised."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.qkv, self.join = nn.Linear(WIDTH, 3 * 16), nn.Linear(16, WIDTH)
        self.of_query, self.of_key = norm(4), norm(4)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = self.qkv(x).view(batch, tokens, 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(self.of_query(q), self.of_key(k), v)
        return self.join(y.transpose(1, 2).reshape(batch, tokens, 16))


class Transformer(nn.Module):
    """A vision transformer with a class token.

    Args:
        norm: Builds a norm over the last axis.
    """

    def __init__(self, norm: Callable[[int], nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, WIDTH, 4, 4)
        self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
        self.positions = nn.Parameter(torch.randn(1, 17, WIDTH))
        self.norms = nn.ModuleList(norm(WIDTH) for _ in range(3))
        self.attention = Attention(norm)
        self.wide, self.narrow = nn.Linear(WIDTH, 20), nn.Linear(20, WIDTH)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1) + self.positions
        x = x + self.attention(self.norms[0](x))
        x = x + self.narrow(F.gelu(self.wide(self.norms[1](x))))
        return self.head(self.norms[2](x)[:, 0])


class Merging(nn.Module):
    """Swin's merging of two by two patches, normalised together."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first = nn.Conv2d(3, WIDTH, 4, 4), nn.LayerNorm(WIDTH)
        self.second, self.reduce = nn.LayerNorm(4 * WIDTH), nn.Linear(4 * WIDTH, 16, bias=False)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(self.embed(x).permute(0, 2, 3, 1))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        return self.head(self.last(self.reduce(self.second(x))).mean((1, 2)))


class ScaledConv(nn.Conv2d):
    """NFNet's convolution: standardised rows, a gain for each."""

    def __init__(self, n_in: int, n_out: int, *args: int, groups: int = 1) -> None:
        super().__init__(n_in, n_out, *args, groups=groups)
        self.gain = nn.Parameter(torch.linspace(0.5, 1.5, n_out).view(-1, 1, 1, 1))
        self.scale = self.weight[0].numel() ** -0.5

    def forward(self, x: Tensor) -> Tensor:
        weight = F.batch_norm(
            self.weight.reshape(1, self.out_channels, -1), None, None,
            weight=(self.gain * self.scale).view(-1), training=True, momentum=0.0, eps=1e-6,
        ).reshape_as(self.weight)  # fmt: skip
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class StandardisedConv(nn.Conv2d):
    """BiT's convolution: standardised rows, by mean and variance."""

    def forward(self, x: Tensor) -> Tensor:
        variance, mean = torch.var_mean(self.weight, (1, 2, 3), keepdim=True, unbiased=False)
        weight = (self.weight - mean) / torch.sqrt(variance + 1e-10)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, groups=self.groups)


class NormFree(nn.Module):
    """A residual network without norms.

    Args:
        conv: The class of its convolutions.
    """

    def __init__(self, conv: Callable[..., nn.Conv2d] = ScaledConv) -> None:
        super().__init__()
        self.stem, self.first = conv(3, WIDTH, 3, 2, 1), conv(WIDTH, 16, 1)
        self.grouped, self.last = conv(16, 16, 3, 1, 1, groups=4), conv(16, WIDTH, 1)
        self.head = nn.Linear(WIDTH, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.grouped(F.relu(self.first(F.relu(x))))
        x = x + 0.2 * self.last(F.relu(y))
        return self.head(F.relu(x).mean((2, 3)))


NORMALISED: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "convnext": (
        ConvNeXt,
        {"stem": WIDTH, "blocks.0.wide": 20, "blocks.1.wide": 20},
    ),
    "poolformer": (PoolFormer, {"stem": WIDTH, "wide": 20}),
    "transformer": (Transformer, {"embed": WIDTH, "attention.qkv": 4, "wide": 20}),
    "rms": (
        lambda: Transformer(nn.RMSNorm),
        {"embed": WIDTH, "attention.qkv": 4, "wide": 20},
    ),
    "rms by hand": (
        lambda: Transformer(MeanNorm),
        {"embed": WIDTH, "attention.qkv": 4, "wide": 20},
    ),
    "merging": (Merging, {"embed": WIDTH, "reduce": 16}),
    "scaled weights": (NormFree, {"stem": WIDTH, "first": 4, "grouped": 4}),
    "standardised weights": (
        lambda: NormFree(StandardisedConv),
        {"stem": WIDTH, "first": 4, "grouped": 4},
    ),
}
"""Name -> a network, and its groups."""
