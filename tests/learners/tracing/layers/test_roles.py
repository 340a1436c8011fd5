"""What channel groups are in a transformer: heads, hidden units of an MLP, the embedding."""

from __future__ import annotations

import json
from functools import cache

import torch
import torch.nn.functional as F  # noqa: N812
from support.costs import counted_macs
from torch import Tensor, nn

from amc_compress.learners.channel_pruning.decisions import keep_ratio_decisions
from amc_compress.learners.networks.outputs import difference, tensors_in
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.graph import ChannelGroup
from amc_env.recorded_tasks.facts_json import task_from_json, task_to_json
from amc_env.render import plan_table

WIDTH, HEAD, TOKENS = 24, 4, 6


class Attention(nn.Module):
    """Causal attention with rotary positions; several query heads share keys and values."""

    def __init__(self, heads: int, shared: int, is_fused: bool) -> None:
        super().__init__()
        self.heads, self.shared, self.is_fused = heads, shared, is_fused
        widths = [heads * HEAD, shared * HEAD, shared * HEAD]
        if is_fused:
            self.qkv = nn.Linear(WIDTH, sum(widths))
        else:
            self.q, self.k, self.v = (nn.Linear(WIDTH, width, bias=False) for width in widths)
        self.norm, self.out = nn.RMSNorm(HEAD), nn.Linear(heads * HEAD, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        if self.is_fused:
            q, k, v = self.qkv(x).chunk(3, -1)
        else:
            q, k, v = self.q(x), self.k(x), self.v(x)
        if self.is_fused:  # with numbers written in
            q, k, v = (y.unflatten(-1, (self.heads, HEAD)).transpose(1, 2) for y in (q, k, v))
        else:
            q, k, v = (y.view(*x.shape[:2], -1, HEAD).transpose(1, 2) for y in (q, k, v))
        q, k = _turned(self.norm(q)), _turned(self.norm(k))
        y = F.scaled_dot_product_attention(
            q, k, v, is_causal=True, enable_gqa=self.shared < self.heads
        )
        return self.out(y.transpose(1, 2).flatten(2))


def _turned(x: Tensor) -> Tensor:
    angles = torch.arange(x.shape[2])[:, None] / torch.tensor([1.0, 10.0])
    first, second = x.chunk(2, -1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1)


class Decoder(nn.Module):
    """Two blocks with gated MLPs, and a head that is the embedding."""

    def __init__(self, heads: int = 4, shared: int = 2, is_fused: bool = False) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(11, WIDTH), nn.Linear(WIDTH, 11, bias=False)
        self.head.weight = self.words.weight
        self.norms = nn.ModuleList(nn.RMSNorm(WIDTH) for _ in range(4))
        self.attentions = nn.ModuleList(Attention(heads, shared, is_fused) for _ in range(2))
        self.gates, self.ups = (
            nn.ModuleList(nn.Linear(WIDTH, 20, bias=False) for _ in range(2)) for _ in range(2)
        )
        self.downs = nn.ModuleList(nn.Linear(20, WIDTH) for _ in range(2))

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for i in range(2):
            x = x + self.attentions[i](self.norms[2 * i](x))
            y = self.norms[2 * i + 1](x)
            x = x + self.downs[i](F.silu(self.gates[i](y)) * self.ups[i](y))
        return self.head(x)


@cache
def decoder() -> TracedModel:
    torch.manual_seed(0)
    return trace(Decoder().eval(), torch.randint(11, (1, TOKENS)))


def roles(traced: TracedModel) -> list[tuple[str, int]]:
    return [(group.role, group.size) for group in traced.graph.groups]


def assert_right(traced: TracedModel, inputs: Tensor) -> None:
    for seed in range(2):
        sizes = {group.name: group.size for group in traced.graph.groups}
        kept = random_cut(sizes, torch.Generator().manual_seed(seed), None)
        small = traced.slice(kept)
        with torch.no_grad():
            assert difference(small(inputs), traced.mask(kept)(inputs)) <= 1e-5
        at = traced.graph.full() | {name: float(len(units)) for name, units in kept.items()}
        assert sum(layer.macs(at) for layer in traced.graph.layers) == counted_macs(
            small, inputs[:1]
        )


def test_a_key_head_leaves_with_its_queries_and_a_tied_head_stays_tied() -> None:
    traced, ids = decoder(), torch.randint(11, (2, TOKENS))
    layer = [("heads", 2), ("mlp", 20)]
    assert roles(traced) == [layer[0], ("embedding", WIDTH), layer[1], *layer]
    heads, stream, *_ = traced.graph.groups
    assert heads.producers == tuple(f"attentions.0.{name}" for name in "qkv")
    assert heads.consumers == ("attentions.0.out",)
    assert "words" in stream.consumers
    assert_right(traced, ids)
    small = traced.slice({stream.name: torch.arange(9), heads.name: torch.tensor([1])})
    assert small.head.weight is small.words.weight
    assert small.head.in_features == small.words.embedding_dim == 9
    shapes = {name: list(x.shape) for name, x in small.attentions[0].state_dict().items()}
    assert shapes["q.weight"] == [8, 9]
    assert shapes["k.weight"] == [4, 9]
    loaded = traced.slice({stream.name: torch.arange(9), heads.name: torch.tensor([0])})
    loaded.load_state_dict(small.state_dict())
    assert torch.equal(loaded(ids), small(ids))
    assert loaded.head.weight is loaded.words.weight


def test_fused_projections_lose_whole_heads() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (2, TOKENS))
    traced = trace(Decoder(3, 3, is_fused=True).eval(), ids[:1])
    assert roles(traced)[0] == ("heads", 3)
    assert traced.graph.channels_per_unit(traced.graph.groups[0]) == 3 * HEAD
    assert_right(traced, ids)


def test_queries_leave_where_one_head_of_keys_serves_all_of_them() -> None:
    torch.manual_seed(0)
    ids = torch.randint(11, (2, TOKENS))
    traced = trace(Decoder(4, 1).eval(), ids[:1])
    layer = [("heads", 4), ("mlp", 20)]
    assert roles(traced) == [layer[0], ("embedding", WIDTH), layer[1], *layer]
    assert traced.graph.groups[0].producers == ("attentions.0.q",)
    for name in "kv":
        reason = traced.graph.frozen[f"attentions.0.{name}"]
        assert reason == "its only head of keys and values serves the queries of all heads"
    assert_right(traced, ids)


def test_a_single_head_stays_with_that_reason() -> None:
    torch.manual_seed(0)
    traced = trace(Decoder(1, 1).eval(), torch.randint(11, (1, TOKENS)))
    assert [role for role, _ in roles(traced)] == ["embedding", "mlp", "mlp"]
    for name in "qkv":
        assert traced.graph.frozen[f"attentions.0.{name}"].startswith("its only head of keys")


class Unknown(Attention):
    """Weighs values by distances, an operation that no rule knows."""

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            m(x).view(*x.shape[:2], -1, HEAD).transpose(1, 2) for m in (self.q, self.k, self.v)
        )
        y = (-torch.cdist(q, k)).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


def test_attention_that_is_not_understood_stays_whole_and_is_named() -> None:
    torch.manual_seed(0)
    net = Decoder(4, 4)
    net.attentions[1] = Unknown(4, 4, is_fused=False)
    net.attentions[1].norm = nn.Identity()
    traced = trace(net.eval(), torch.randint(11, (1, TOKENS)))
    assert roles(traced) == [("heads", 4), ("embedding", WIDTH), ("mlp", 20), ("mlp", 20)]
    for name in "qk":
        assert "cdist" in traced.graph.frozen[f"attentions.1.{name}"]


class Cache:
    """Keys and values of the tokens so far, as ``transformers`` keeps them."""

    def __init__(self) -> None:
        self.keys: list[Tensor] = []

    def update(self, keys: Tensor) -> None:
        self.keys.append(keys)

    def get_seq_length(self) -> int:
        return self.keys[0].shape[1]


class Remembering(Decoder):
    """Returns a cache besides its logits."""

    def forward(self, ids: Tensor) -> tuple[Tensor, Cache]:  # type: ignore[override]
        cache = Cache()
        hook = nn.modules.module.register_module_forward_hook(
            lambda module, _, out: cache.update(out) if module is self.attentions[0].k else None
        )
        try:
            return super().forward(ids), cache
        finally:
            hook.remove()


def test_a_cache_that_a_decoder_returns_is_no_output() -> None:
    ids = torch.randint(11, (1, TOKENS))
    net = Remembering().eval()
    assert len(tensors_in(net(ids))) == 1
    assert roles(trace(net, ids))[0] == ("heads", 2)


class Classifier(nn.Module):
    """Patches and a token that is repeated for every image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, WIDTH, 4, 4), nn.Parameter(torch.randn(1, 1, WIDTH))
        self.attention, self.head = Attention(4, 4, is_fused=True), nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.token.expand(x.shape[0], -1, -1), x), 1)
        return self.head((x + self.attention(x))[:, 0])


def test_a_token_that_is_repeated_for_every_image_is_cut_with_the_embedding() -> None:
    torch.manual_seed(0)
    traced = trace(Classifier().eval(), torch.randn(1, 3, 8, 8))
    assert roles(traced) == [("embedding", WIDTH), ("heads", 4)]
    assert_right(traced, torch.randn(3, 3, 8, 8))


def test_the_last_head_of_a_layer_is_no_choice() -> None:
    heads = [g.name for g in decoder().graph.groups if g.role == "heads"]
    choices = {d.target: d.choices for d in keep_ratio_decisions(decoder().graph, 4, 0.0)}
    assert all(choices[name] == (0.5, 1.0) for name in heads)


def test_a_table_of_a_plan_tells_roles() -> None:
    decisions = keep_ratio_decisions(decoder().graph, 4, 0.0)
    rows = plan_table(decoder().graph, decisions, [0.5, 1.0]).splitlines()
    assert rows[1].endswith("  heads")
    assert rows[2].endswith("  embedding")


def test_roles_are_stored_with_a_task_and_plain_channels_need_none() -> None:
    decisions = keep_ratio_decisions(decoder().graph, 4, 0.0)
    document = json.loads(json.dumps(task_to_json(decoder().graph, decisions)))
    assert task_from_json(document)[0] == decoder().graph
    stored = document["graph"]["groups"]
    assert [group.pop("role") for group in stored] == [role for role, _ in roles(decoder())]
    graph, *_ = task_from_json(document)
    assert {group.role for group in graph.groups} == {"channels"}
    assert "role" not in json.dumps(task_to_json(graph, decisions))


def test_what_no_attention_reads_has_no_role() -> None:
    net = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.Flatten(),
        nn.Linear(96, 10), nn.ReLU(), nn.Linear(10, 3),
    )  # fmt: skip
    traced = trace(net.eval(), torch.randn(1, 3, 6, 6))
    assert roles(traced) == [("channels", 8), ("channels", 6), ("channels", 10)]
    assert ChannelGroup("a", 2, (), ()).role == "channels"
