"""Small modules with channel numbers in their forward, called in all the ways that occur."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

WIDTH = 16


class Attention(nn.Module):
    """Timm's: an optional mask and a flag, handed to the fused kernel."""

    def __init__(self, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.proj = nn.Linear(WIDTH, WIDTH)

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=attn_mask, is_causal=is_causal)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class BranchingAttention(Attention):
    """Timm's without the fused kernel: it decides by its arguments; dropout by its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("causal", torch.full((256, 256), -1e9).triu(1), persistent=False)

    def forward(self, x: Tensor, attn_mask: Any = None, is_causal: bool = False) -> Tensor:
        b, n, c = x.shape
        qkv = self.qkv(x).reshape(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        scores = q @ k.transpose(-2, -1)
        if attn_mask is not None:
            scores = scores + attn_mask
        if is_causal:
            scores = scores + self.causal[:n, :n]
        scores = F.dropout(scores.softmax(-1), 0.1 if self.training else 0.0)
        return self.proj((scores @ v).transpose(1, 2).reshape(b, n, c))


class KeywordOnlyAttention(Attention):
    """Everything but the tokens is passed by keyword."""

    def forward(self, x: Tensor, /, *, heads: int = 4, scale: float = 1.0) -> Tensor:  # type: ignore[override]
        b, n, c = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(scale * q, k, v)
        return self.proj(x.transpose(1, 2).reshape(b, n, c))


class MixFFN(nn.Module):
    """SegFormer's: tokens -> image -> depthwise -> tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(WIDTH, 24)
        self.dw = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.fc2 = nn.Linear(24, WIDTH)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        x = self.fc1(x)
        b, _, c = x.shape
        x = self.dw(x.transpose(1, 2).view(b, c, height, width)).flatten(2).transpose(1, 2)
        return self.fc2(F.gelu(x))


class WindowAttention(Attention):
    """Swin's: windows of computed sizes; the size is a tuple."""

    def forward(self, x: Tensor, size: tuple[int, int], window: int = 2) -> Tensor:  # type: ignore[override]
        b, n, c = x.shape
        h, w = size
        count = (h // window) * (w // window)
        x = x.view(b, h // window, window, w // window, window, c).transpose(2, 3)
        x = x.reshape(b * count, window * window, c)
        qkv = self.qkv(x).reshape(b * count, window * window, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        x = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b * count, -1, c)
        x = x.view(b, h // window, w // window, window, window, c).transpose(2, 3)
        return self.proj(x.reshape(b, n, c))


def shifted_attention(
    x: Tensor, qkv: nn.Linear, proj: nn.Linear, bias: Tensor, window: int, heads: int
) -> Tensor:
    """Torchvision's Swin: one function, which decides by the size and writes into a mask."""
    b, c, h, w = x.shape
    x = F.pad(x.permute(0, 2, 3, 1), (0, 0, 0, -w % window, 0, -h % window))
    _, high, wide, _ = x.shape
    shift = 0 if window >= high or window >= wide else window // 2
    x = torch.roll(x, (-shift, -shift), (1, 2)) if shift else x
    count = (high // window) * (wide // window)
    x = x.view(b, high // window, window, wide // window, window, c).transpose(2, 3)
    x = x.reshape(b * count, window * window, c)
    parts = F.linear(x, qkv.weight, qkv.bias)
    parts = parts.reshape(x.size(0), x.size(1), 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    q, k, v = parts[0] * (c // heads) ** -0.5, parts[1], parts[2]
    scores = q @ k.transpose(-2, -1) + bias
    if shift:
        mask = x.new_zeros((high, wide))
        for rows in (slice(0, -window), slice(-window, None)):
            for number, columns in enumerate((slice(0, -window), slice(-window, None))):
                mask[rows, columns] = number
        mask = mask.view(high // window, window, wide // window, window).transpose(1, 2)
        mask = mask.reshape(count, 1, window * window)
        mask = (mask != mask.transpose(1, 2)) * -9.0
        scores = scores.view(b, count, heads, window * window, -1) + mask[None, :, None]
        scores = scores.view(-1, heads, window * window, window * window)
    x = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.size(0), x.size(1), c)
    x = F.linear(x, proj.weight, proj.bias)
    x = x.view(b, high // window, wide // window, window, window, c).transpose(2, 3)
    x = x.reshape(b, high, wide, c)
    x = torch.roll(x, (shift, shift), (1, 2)) if shift else x
    return x[:, :h, :w].permute(0, 3, 1, 2)


torch.fx.wrap("shifted_attention")


class ShiftedWindows(Attention):
    """Swin's, with biases by position from a table."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(49, self.heads))
        places = torch.arange(16).view(4, 4)
        rows, columns = (x.flatten()[:, None] - x.flatten() + 3 for x in (places // 4, places % 4))
        self.register_buffer("index", rows * 7 + columns)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        bias = self.table[self.index.view(-1)].view(16, 16, -1).permute(2, 0, 1)
        return shifted_attention(x, self.qkv, self.proj, bias, 4, self.heads)


class Shuffle(nn.Module):
    """A channel shuffle between two grouped convolutions; how many groups is an argument."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(WIDTH, 16, 1)
        self.b = nn.Conv2d(16, WIDTH, 1)

    def forward(self, x: Tensor, groups: int = 4) -> Tensor:
        x = F.relu(self.a(x))
        if groups > 1:
            b, c, h, w = x.shape
            x = x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return self.b(x)


class Rest(Shuffle):
    """Arguments in any number."""

    def forward(self, x: Tensor, *sizes: int, **options: Any) -> Tensor:  # type: ignore[override]
        x = F.relu(self.a(x))
        h, w = sizes
        groups = options["groups"]
        x = x.view(-1, groups, 16 // groups, h, w).transpose(1, 2).reshape(-1, 16, h, w)
        return self.b(x)


class Chosen(nn.Module):
    """It decides by a shape where it has channel numbers: nothing can rewrite it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(WIDTH, 16, 1)
        self.b = nn.Conv2d(8, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = x[:, ::2] if x.shape[-1] > 1 else x[:, 1::2]
        return self.b(x)


class Net(nn.Module):
    """A stem, the module between ordinary layers, and a head.

    Args:
        module: The module.
        call: Calls it on an image, shape ``(batch, WIDTH, height, width)``.
    """

    def __init__(self, module: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 2, 2)
        self.before = nn.Conv2d(WIDTH, 12, 1)
        self.join = nn.Conv2d(12, WIDTH, 1)
        self.norm = nn.GroupNorm(1, WIDTH)
        self.module = module
        self.head = nn.Linear(WIDTH, 5)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.stem(x))
        x = x + self.join(F.relu(self.before(x)))
        return self.head((x + self.call(self.module, x)).mean((2, 3)))


def on_tokens(*args: Any, **kwargs: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    """Returns a call with these arguments; ``H`` and ``W`` in them stand for the image's."""

    def call(module: nn.Module, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        a, k = _sized(args, x), _sized(kwargs, x)
        return module(tokens, *a, **k).transpose(1, 2).reshape(x.shape)

    return call


def on_image(*args: Any, **kwargs: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    """As :func:`on_tokens`, for modules that take images."""

    def call(module: nn.Module, x: Tensor) -> Tensor:
        return module(x, *_sized(args, x), **_sized(kwargs, x))  # type: ignore[no-any-return]

    return call


def _sized(value: Any, x: Tensor) -> Any:
    if isinstance(value, tuple):
        return tuple(_sized(part, x) for part in value)
    if isinstance(value, dict):
        return {key: _sized(part, x) for key, part in value.items()}
    return x.shape["HW".index(value) - 2] if value in ("H", "W") else value


def twice(first: Any, second: Any) -> Callable[[nn.Module, Tensor], Tensor]:
    """Returns two calls of one module, one after the other."""
    return lambda module, x: second(module, first(module, x))


# Module, ways to call it that must yield the same groups, and units of those inside it.
CALLS: dict[str, tuple[Callable[[], nn.Module], list[Any], dict[str, int]]] = {
    "attention": (
        Attention,
        [on_tokens(), on_tokens(None, False), on_tokens(attn_mask=None, is_causal=False)],
        {"module.qkv": 4},
    ),
    "causal": (Attention, [on_tokens(None, True), on_tokens(is_causal=True)], {"module.qkv": 4}),
    "branching": (
        BranchingAttention,
        [on_tokens(), on_tokens(attn_mask=None), on_tokens(None, is_causal=False)],
        {"module.qkv": 4},
    ),
    "branching_twice": (
        BranchingAttention,
        [twice(on_tokens(), on_tokens(None, True)),
         twice(on_tokens(attn_mask=None), on_tokens(is_causal=True))],
        {"module.qkv": 4},
    ),
    "keyword_only": (
        KeywordOnlyAttention,
        [on_tokens(), on_tokens(scale=1.0), on_tokens(heads=4, scale=1.0)],
        {"module.qkv": 4},
    ),
    "mix_ffn": (
        MixFFN,
        [on_tokens("H", "W"), on_tokens("H", width="W"), on_tokens(width="W", height="H")],
        {"module.fc1": 24},
    ),
    "window": (
        WindowAttention,
        [on_tokens(("H", "W")), on_tokens(("H", "W"), 2), on_tokens(window=2, size=("H", "W"))],
        {"module.qkv": 4},
    ),
    "shifted": (ShiftedWindows, [on_image()], {"module.qkv": 4}),
    "shuffle": (Shuffle, [on_image(), on_image(4), on_image(groups=4)], {"module.a": 16}),
    "no_shuffle": (Shuffle, [on_image(1), on_image(groups=1)], {"module.a": 16}),
    "shuffle_twice": (
        Shuffle,
        [twice(on_image(4), on_image(4)), twice(on_image(groups=4), on_image(groups=4))],
        {"module.a": 16},
    ),
    "two_shuffles": (
        Shuffle,
        [twice(on_image(4), on_image(1)), twice(on_image(groups=4), on_image(groups=1))],
        {},
    ),
    "rest": (
        Rest,
        [on_image("H", "W", groups=4), on_image("H", "W", **{"groups": 4})],
        {"module.a": 16},
    ),
}  # fmt: skip
