"""Small versions of the networks that structural pruning tools break or reject."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn


def conv_bn(n_in: int, n_out: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(n_in, n_out, k, stride, k // 2, groups=groups, bias=False), nn.BatchNorm2d(n_out)
    )


class Block(nn.Module):
    """A CIFAR residual block with option A (inline) or a 1x1 convolution as its shortcut."""

    def __init__(self, n_in: int, n_out: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(n_out)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(n_out)
        self.stride = stride
        self.padded = n_out - n_in
        self.option = option
        if option == "conv" and (stride != 1 or n_in != n_out):
            self.shortcut = conv_bn(n_in, n_out, 1, stride)
        else:
            self.shortcut = nn.Sequential()

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.option == "pad" and self.padded:
            half = self.padded // 2
            out += F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, half))
        else:
            out += self.shortcut(x)
        return F.relu(out)


class ResNet20(nn.Module):
    def __init__(self, option: str = "pad", width: int = 8) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        blocks: list[nn.Module] = []
        n_in = width
        for stage in range(3):
            for index in range(3):
                n_out = width << stage
                blocks.append(Block(n_in, n_out, 2 if stage and not index else 1, option))
                n_in = n_out
        self.blocks = nn.Sequential(*blocks)
        self.linear = nn.Linear(n_in, 10)

    def forward(self, x: Tensor) -> Tensor:
        out = self.blocks(F.relu(self.bn1(self.conv1(x))))
        out = F.avg_pool2d(out, out.size()[3])
        return self.linear(out.view(out.size(0), -1))


class InvertedResidual(nn.Module):
    def __init__(self, n_in: int, n_out: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = n_in * expand
        self.conv = nn.Sequential(
            conv_bn(n_in, hidden, 1), nn.ReLU6(True),
            conv_bn(hidden, hidden, 3, stride, hidden), nn.ReLU6(True), conv_bn(hidden, n_out, 1),
        )  # fmt: skip
        self.skip = stride == 1 and n_in == n_out

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) if self.skip else self.conv(x)


def mobilenet_v2() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8, 3, 2), nn.ReLU6(), InvertedResidual(8, 8, 1, 3),
        InvertedResidual(8, 12, 2, 3), InvertedResidual(12, 12, 1, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(12, 10),
    )  # fmt: skip


class ResNeXtBlock(nn.Module):
    def __init__(self, width: int, inner: int, groups: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv_bn(width, inner, 1), nn.ReLU(), conv_bn(inner, inner, 3, 1, groups), nn.ReLU(),
            conv_bn(inner, width, 1),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.body(x), inplace=True)


def resnext() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16), nn.ReLU(), ResNeXtBlock(16, 32, 8), ResNeXtBlock(16, 32, 8),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip


class DenseLayer(nn.Module):
    def __init__(self, n_in: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(n_in)
        self.conv = nn.Conv2d(n_in, growth, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, self.conv(F.relu(self.bn(x)))), 1)


def densenet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, 1, 1), DenseLayer(8, 6), DenseLayer(14, 6), nn.BatchNorm2d(20),
        nn.ReLU(), nn.Conv2d(20, 10, 1), nn.AvgPool2d(2), DenseLayer(10, 6), DenseLayer(16, 6),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(22, 10),
    )  # fmt: skip


class ShuffleUnit(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            conv_bn(half, half, 1), nn.ReLU(), conv_bn(half, half, 3, 1, half),
            conv_bn(half, half, 1), nn.ReLU(),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=1)
        x = torch.cat((first, self.branch(second)), 1)
        b, c, h, w = x.shape
        return x.view(b, 2, c // 2, h, w).transpose(1, 2).contiguous().view(b, c, h, w)


def shufflenet() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16), nn.ReLU(), ShuffleUnit(16), ShuffleUnit(16), conv_bn(16, 24, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 10),
    )  # fmt: skip


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, inner)
        self.fc2 = nn.Linear(inner, width)

    def forward(self, x: Tensor) -> Tensor:
        b, c, _, _ = x.size()
        gate = torch.sigmoid(self.fc2(F.relu(self.fc1(x.mean((2, 3))))))
        return x * gate.view(b, c, 1, 1)


def squeeze_excite() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 16), SqueezeExcite(16, 4), nn.ReLU(), conv_bn(16, 12), nn.Hardswish(),
        SqueezeExcite(12, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10),
    )  # fmt: skip


class ConvFlattenLinear(nn.Module):
    """With the flattened width written as a number, as tutorials do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 5)
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.fc1 = nn.Linear(16 * 5 * 5, 24)
        self.fc2 = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = F.dropout(F.relu(self.fc1(x.view(-1, 16 * 5 * 5))), 0.5, self.training)
        return self.fc2(x)


class Attention(nn.Module):
    """Timm's: one fused projection, reshaped to (3, batch, heads, tokens, width) and unbound."""

    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = heads
        self.scale = (width // heads) ** -0.5
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.fused = fused

    def forward(self, x: Tensor) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.num_heads, c // self.num_heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.fused:
            x = F.scaled_dot_product_attention(q, k, v)
        else:
            x = ((q * self.scale) @ k.transpose(-2, -1)).softmax(-1) @ v
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class EncoderBlock(nn.Module):
    def __init__(self, width: int, heads: int, fused: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads, fused)
        self.norm2 = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, 2 * width)
        self.fc2 = nn.Linear(2 * width, width)
        self.gamma = nn.Parameter(0.1 * torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.gamma * self.fc2(F.gelu(self.fc1(self.norm2(x))))


class ViT(nn.Module):
    def __init__(self, fused: bool = False, width: int = 24, heads: int = 4) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.pos = nn.Parameter(torch.zeros(1, 17, width))
        self.blocks = nn.Sequential(*[EncoderBlock(width, heads, fused) for _ in range(2)])
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls.expand(x.shape[0], -1, -1), x), 1) + self.pos
        return self.head(self.norm(self.blocks(x))[:, 0])


class TransformerClassifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(48, 16)
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = F.unfold(x, 4, stride=4).transpose(1, 2)
        return self.head(self.encoder(self.embed(patches)).mean(1))


class UsedTwice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.shared = conv_bn(8, 8)
        self.inner = conv_bn(8, 12)
        self.outer = conv_bn(12, 8)
        self.linear = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = x + F.relu(self.shared(x))
            x = self.outer(F.relu(self.inner(x)))
        return self.linear(x.mean((2, 3)))


class ControlFlow(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_bn(3, 8)
        self.layers = nn.ModuleList([conv_bn(8, 8), Block(8, 16, 2, "pad")])
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> dict[str, Tensor | tuple[Tensor, ...]]:
        bright = x.mean()
        x = F.relu(self.stem(x))
        if bright > -1e9:  # depends on data: symbolic tracing fails here
            for layer in self.layers:
                x = layer(x)
        return {"logits": self.linear(x.mean((2, 3))), "extra": (bright,)}


class Inception(nn.Module):
    def __init__(self, n_in: int) -> None:
        super().__init__()
        self.a = conv_bn(n_in, 6, 1)
        self.b = nn.Sequential(conv_bn(n_in, 4, 1), nn.ReLU(), conv_bn(4, 8, 3))
        self.c = nn.Sequential(nn.MaxPool2d(3, 1, 1), conv_bn(n_in, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(torch.cat([self.a(x), self.b(x), self.c(x)], dim=1))


def inception() -> nn.Module:
    return nn.Sequential(
        conv_bn(3, 8), Inception(8), Inception(20), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(20, 10),
    )  # fmt: skip


class GroupNormNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1)
        self.norm1 = nn.GroupNorm(4, 16)
        self.conv2 = nn.Conv2d(16, 16, 3, 1, 1)
        self.norm2 = nn.GroupNorm(8, 16)
        self.act = nn.PReLU(16)
        self.norm3 = nn.InstanceNorm2d(16, affine=True)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.norm1(self.conv1(x)))
        x = self.norm3(self.act(self.norm2(self.conv2(x))))
        return self.linear(F.adaptive_max_pool2d(x, 1).flatten(1))


def frozen_parameters() -> nn.Module:
    return ResNet20("pad").requires_grad_(False)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet20_option_a": ResNet20,
    "resnet20_conv_shortcut": lambda: ResNet20("conv"),
    "mobilenet_v2": mobilenet_v2,
    "resnext": resnext,
    "densenet": densenet,
    "shufflenet": shufflenet,
    "squeeze_excite": squeeze_excite,
    "conv_flatten_linear": ConvFlattenLinear,
    "vit": ViT,
    "vit_fused": lambda: ViT(fused=True),
    "transformer_encoder": TransformerClassifier,
    "frozen_parameters": frozen_parameters,
    "used_twice": UsedTwice,
    "control_flow": ControlFlow,
    "inception": inception,
    "group_norm": GroupNormNet,
}
