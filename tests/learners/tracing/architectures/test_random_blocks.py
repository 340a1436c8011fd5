"""Random transformer blocks: what is cut is right, and what stays whole says why."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from support.costs import counted_macs
from support.selection import examples, quick
from torch import Tensor, nn

from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut, randomised
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.graph import EMBEDDING, HEADS, MLP

WIDTH, HEADS_OF_ALL, HIDDEN, WORDS, TOKENS = 12, 4, 10, 13, 7


@dataclass(frozen=True)
class Shape:
    """How a block is written; every field is a way that is common."""

    projections: str = "separate"  # or "sliced", "split", "interleaved"
    shared: int = 4  # heads of keys and values
    head: int = 4  # channels of each, of which heads need not make up the width
    norm_of_queries: bool = False
    rotary: int = 0  # channels that are turned
    bias_by_position: str = "none"  # or "slopes", "table"
    causal: bool = True
    window: int = 0
    is_parallel: bool = False
    reuses_keys: bool = False
    has_biases: bool = True
    scale: str = "head"  # or "heads": computed from their number
    ties: bool = False
    mlp: str = "plain"  # or "gated", "fused", "experts"
    residual: str = "plain"  # or "scaled", "halved"
    kernel: str = "fused"  # or "grouped", "written"
    numbers: str = "inferred"  # or "attributes", "settings"
    stores: bool = False  # whether keys and values go into an object


class Settings:
    """What networks are made from."""

    def __init__(self, shape: Shape) -> None:
        self.heads, self.shared, self.head, self.hidden = (
            HEADS_OF_ALL, shape.shared, shape.head, HIDDEN,
        )  # fmt: skip


class Store:
    """Keys and values, by layer."""

    def __init__(self) -> None:
        self.pairs: dict[int, tuple[Tensor, Tensor]] = {}

    def update(self, key: Tensor, value: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        self.pairs[layer] = (key, value)
        return key, value


class Attention(nn.Module):
    def __init__(self, shape: Shape, layer: int, settings: Settings) -> None:
        super().__init__()
        self.shape, self.layer, self.settings = shape, layer, settings
        self.heads, self.shared, self.head = HEADS_OF_ALL, shape.shared, shape.head
        self.repeats = self.heads // self.shared
        wide, narrow = self.heads * self.head, self.shared * self.head
        if shape.projections == "separate":
            self.q = nn.Linear(WIDTH, wide, shape.has_biases)
            if not (shape.reuses_keys and layer):
                self.k = nn.Linear(WIDTH, narrow, shape.has_biases)
                self.v = nn.Linear(WIDTH, narrow, shape.has_biases)
        else:
            self.qkv = nn.Linear(WIDTH, wide + 2 * narrow, shape.has_biases)
        self.norm = nn.RMSNorm(self.head) if shape.norm_of_queries else nn.Identity()
        self.out = nn.Linear(wide, WIDTH, shape.has_biases)
        self.register_buffer("slopes", 0.5 ** torch.arange(1.0, self.heads + 1))

    def numbers(self) -> tuple[int, int, int]:
        if self.shape.numbers == "inferred":
            return -1, -1, self.repeats
        owner: Any = self if self.shape.numbers == "attributes" else self.settings
        return owner.heads, owner.shared, owner.heads // owner.shared

    def projected(self, x: Tensor, known: Any) -> tuple[Tensor, Tensor, Tensor]:
        heads, shared, _ = self.numbers()
        if self.shape.projections == "separate":
            q = self.q(x).view(*x.shape[:2], heads, self.head)
            if known is not None:
                return q.transpose(1, 2), *known
            k, v = (y.view(*x.shape[:2], shared, self.head) for y in (self.k(x), self.v(x)))
        elif self.shape.projections == "interleaved":
            every = self.qkv(x).view(*x.shape[:2], heads, 3, self.head)
            q, k, v = every.unbind(3)
        else:
            wide, narrow = self.heads * self.head, self.shared * self.head
            if self.shape.numbers == "settings":
                wide, narrow = (n * self.head for n in (self.settings.heads, self.settings.shared))
            y = self.qkv(x)
            if self.shape.projections == "split":
                q, k, v = y.split([wide, narrow, narrow], -1)
            else:
                q, k, v = y[..., :wide], y[..., wide : wide + narrow], y[..., wide + narrow :]
            q = q.view(*x.shape[:2], heads, self.head)
            k, v = (z.view(*x.shape[:2], shared, self.head) for z in (k, v))
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def forward(self, x: Tensor, bias: Tensor | None, known: Any, store: Any) -> Any:
        q, k, v = self.projected(x, known)
        q = self.turned(self.norm(q))
        if known is None:
            k = self.turned(self.norm(k))
        if store is not None:
            k, v = store.update(k, v, self.layer)
        known = (k, v)
        mask = self.masked(x, bias)
        if self.shape.kernel == "grouped":
            y = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale(), enable_gqa=True)
        else:
            repeats = self.numbers()[2]
            k, v = (z[:, :, None].expand(-1, -1, repeats, -1, -1).flatten(1, 2) for z in (k, v))
            if self.shape.kernel == "fused":
                y = F.scaled_dot_product_attention(q, k, v, mask, scale=self.scale())
            else:
                y = (q @ k.transpose(2, 3) * self.scale() + mask).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2)), known

    def scale(self) -> float:
        return (self.head if self.shape.scale == "head" else self.heads * 3) ** -0.5

    def turned(self, x: Tensor) -> Tensor:
        if not self.shape.rotary:
            return x
        inside, rest = x[..., : self.shape.rotary], x[..., self.shape.rotary :]
        angles = torch.arange(x.shape[2])[:, None] / torch.tensor([1.0] * (self.shape.rotary // 2))
        first, second = inside.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat((first * cos - second * sin, second * cos + first * sin, rest), -1)

    def masked(self, x: Tensor, bias: Tensor | None) -> Tensor:
        places = torch.arange(x.shape[1])
        apart = places[:, None] - places
        hidden = torch.zeros_like(apart, dtype=torch.bool)
        if self.shape.causal:
            hidden = apart < 0
        if self.shape.window:
            hidden = hidden | (apart.abs() >= self.shape.window)
        mask = torch.zeros(apart.shape).masked_fill(hidden, -1e9)[None, None]
        if self.shape.bias_by_position == "slopes":
            mask = mask - self.slopes.view(1, -1, 1, 1) * apart.abs()
        return mask if bias is None else mask + bias


class Experts(nn.Module):
    """The best of two MLPs for each token, by a router."""

    def __init__(self) -> None:
        super().__init__()
        self.router = nn.Linear(WIDTH, 2)
        self.up, self.down = (
            nn.ModuleList(nn.Linear(a, b) for _ in range(2))
            for a, b in ((WIDTH, HIDDEN), (HIDDEN, WIDTH))
        )

    def forward(self, x: Tensor) -> Tensor:
        weights = self.router(x).softmax(-1)
        chosen = torch.where(weights == weights.amax(-1, keepdim=True), weights, 0.0)
        mixed = [chosen[..., i, None] * self.down[i](F.gelu(self.up[i](x))) for i in range(2)]
        return mixed[0] + mixed[1]


class Feed(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.kind = shape.mlp
        self.up = nn.Linear(WIDTH, HIDDEN * (1 + (shape.mlp == "fused")), shape.has_biases)
        self.gate = nn.Linear(WIDTH, HIDDEN) if shape.mlp == "gated" else None
        self.down = nn.Linear(HIDDEN, WIDTH, shape.has_biases)

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(x)
        if self.kind == "fused":
            gate, y = y.chunk(2, -1)
            return self.down(F.silu(gate) * y)
        return self.down(F.gelu(y) if self.gate is None else F.silu(self.gate(x)) * y)


class Block(nn.Module):
    def __init__(self, shape: Shape, layer: int, settings: Settings) -> None:
        super().__init__()
        self.shape = shape
        self.first = nn.LayerNorm(WIDTH)
        self.second = nn.Identity() if shape.is_parallel else nn.RMSNorm(WIDTH)
        self.attention = Attention(shape, layer, settings)
        self.mlp = Experts() if shape.mlp == "experts" else Feed(shape)
        self.gain = nn.Parameter(torch.rand(WIDTH)) if shape.residual == "scaled" else None

    def forward(self, x: Tensor, bias: Tensor | None, known: Any, store: Any) -> Any:
        y = self.first(x)
        mixed, known = self.attention(y, bias, known, store)
        if self.shape.is_parallel:
            return x + self.scaled(mixed) + self.scaled(self.mlp(y)), known
        x = x + self.scaled(mixed)
        return x + self.scaled(self.mlp(self.second(x))), known

    def scaled(self, y: Tensor) -> Tensor:
        if self.gain is not None:
            return y * self.gain
        return y * 0.5 if self.shape.residual == "halved" else y


class Decoder(nn.Module):
    """Two blocks between an embedding and a head."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        settings = Settings(shape)
        self.words, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        if shape.ties:
            self.head.weight = self.words.weight
        self.blocks = nn.ModuleList(Block(shape, layer, settings) for layer in range(2))
        self.table = nn.Embedding(32, HEADS_OF_ALL) if shape.bias_by_position == "table" else None

    def forward(self, ids: Tensor) -> Tensor:
        x, bias, known = self.words(ids), None, None
        store = Store() if self.shape.stores else None
        if self.table is not None:
            places = torch.arange(ids.shape[1])
            bias = self.table((places[:, None] - places).clamp(-15, 15) + 16).permute(2, 0, 1)[None]
        for block in self.blocks:
            x, found = block(x, bias, known, store)
            known = found if self.shape.reuses_keys else None
        return self.head(x)


@st.composite
def shapes(draw: st.DrawFn) -> Shape:
    def one(*values: Any) -> Any:
        return draw(st.sampled_from(values))

    shape = Shape(
        projections=one("separate", "sliced", "split", "interleaved"), shared=one(4, 2, 1),
        head=one(4, 6), norm_of_queries=one(False, True), rotary=one(0, 2, 4),
        bias_by_position=one("none", "none", "slopes", "table"), causal=one(True, False),
        window=one(0, 3), is_parallel=one(False, True), reuses_keys=one(False, False, True),
        has_biases=one(True, False), scale=one("head", "heads"), ties=one(False, True),
        mlp=one("plain", "gated", "fused", "experts"), residual=one("plain", "scaled", "halved"),
        kernel=one("fused", "grouped", "written"),
        numbers=one("inferred", "attributes", "settings"), stores=one(False, True),
    )  # fmt: skip
    if shape.projections == "interleaved":
        shape = replace(shape, shared=4)
    return shape if shape.projections == "separate" else replace(shape, reuses_keys=False)


def traced_decoder(shape: Shape) -> TracedModel:
    torch.manual_seed(0)
    net = Decoder(shape).eval()
    randomised(net, torch.Generator().manual_seed(5))
    return trace(net, torch.randint(WORDS, (1, TOKENS)))


def assert_right(traced: TracedModel) -> None:
    graph, ids = traced.graph, torch.randint(WORDS, (2, TOKENS))
    sizes = {group.name: group.size for group in graph.groups}
    for seed, share in enumerate((None, 0.5)):
        kept = random_cut(sizes, torch.Generator().manual_seed(seed), share)
        small = traced.slice(kept)
        with torch.no_grad():
            apart = difference(small(ids), traced.mask(kept)(ids))
        assert apart <= 2e-6
        at = graph.full() | {name: float(len(units)) for name, units in kept.items()}
        assert sum(layer.macs(at) for layer in graph.layers) == counted_macs(small, ids[:1])
    # Every output of a layer is in a group, or its layer says why not.
    for layer in graph.layers:
        if layer.has_weights and layer.out_width.fixed:
            assert graph.frozen.get(layer.name), layer.name


def assert_heads_are_heads(traced: TracedModel, shape: Shape) -> None:
    """Compares a cut with zeros in place of what the heads hand on, written down by hand."""
    ids = torch.randint(WORDS, (2, TOKENS))
    units = HEADS_OF_ALL if shape.shared == 1 else shape.shared
    for group in traced.graph.groups:
        if group.role != HEADS or len(group.consumers) != 1:
            continue
        assert group.size == units
        net: Any = traced.mask({})
        width = shape.head * HEADS_OF_ALL // units
        with torch.no_grad():
            out = net.get_submodule(group.consumers[0]).weight
            out.view(WIDTH, units, width)[:, 0] = 0
            small = traced.slice({group.name: torch.arange(1, units)})
            assert difference(small(ids), net(ids)) <= 2e-6


@pytest.mark.slow
@examples(60, suppress_health_check=[HealthCheck.too_slow])
@given(shapes())
def test_a_random_block_is_cut_rightly_or_says_why_not(shape: Shape) -> None:
    traced = traced_decoder(shape)
    assert_right(traced)
    assert_heads_are_heads(traced, shape)


USUAL = (
    Shape("sliced", 2, stores=True, numbers="settings", mlp="fused", rotary=4, ties=True),
    Shape("split", 1, numbers="attributes", kernel="written", is_parallel=True, stores=True),
    Shape("interleaved", head=6, numbers="attributes", bias_by_position="table", window=3),
)


@pytest.mark.parametrize("shape", quick(USUAL, USUAL[0]))
def test_heads_are_found_however_they_are_written(shape: Shape) -> None:
    traced = traced_decoder(shape)
    roles = [group.role for group in traced.graph.groups]
    together = shape.bias_by_position == "table"
    assert roles.count(HEADS) == 1 if together else 2
    assert (roles.count(MLP), roles.count(EMBEDDING)) == (2, 1)
    assert_right(traced)
    assert_heads_are_heads(traced, shape)
