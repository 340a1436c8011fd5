"""``nn.MultiheadAttention`` with some of its heads, and some of its channels."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from support.costs import counted_macs
from torch import Tensor, nn

from amc_compress.learners.layers.attention import CutMultiheadAttention
from amc_compress.learners.networks.outputs import difference
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import TracedModel, trace
from amc_env.errors import InputDataError

WIDTH, HEADS, SAMPLES, STEPS = 12, 3, 2, 5


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    module = nn.MultiheadAttention(WIDTH, HEADS, **options).eval()
    if module.out_proj.bias is not None:
        nn.init.normal_(module.out_proj.bias)
    return module


def adopted(module: nn.MultiheadAttention) -> nn.MultiheadAttention:
    module = copy.deepcopy(module)
    CutMultiheadAttention.adopt(module)
    return module


def agree(first: Any, second: Any) -> bool:
    return all(
        a is b is None or torch.allclose(a, b, atol=1e-6)
        for a, b in zip(first, second, strict=True)
    )


CAUSAL = torch.triu(torch.ones(STEPS, STEPS, dtype=torch.bool), 1)
PADDED = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "without weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "causal": {"attn_mask": CAUSAL, "need_weights": False, "is_causal": True},
    "masked": {"attn_mask": CAUSAL},
    "numbers as a mask": {"attn_mask": torch.randn(STEPS, STEPS), "need_weights": False},
    "a mask per head": {"attn_mask": torch.randn(SAMPLES * HEADS, STEPS, STEPS)},
    "padded": {"key_padding_mask": PADDED, "need_weights": False},
    "both": {"key_padding_mask": PADDED, "attn_mask": CAUSAL},
}


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize("call", CALLS)
def test_with_nothing_cut_it_is_the_original(call: str, batch_first: bool) -> None:
    module = attention(batch_first=batch_first)
    shape = (SAMPLES, STEPS, WIDTH) if batch_first else (STEPS, SAMPLES, WIDTH)
    q, k = torch.randn(shape), torch.randn(shape)
    with torch.no_grad():
        expected = module(q, k, k * 2, **CALLS[call])
        assert agree(adopted(module)(q, k, k * 2, **CALLS[call]), expected)


def test_without_a_bias_or_a_batch_it_is_the_original_too() -> None:
    module, x = attention(bias=False), torch.randn(STEPS, WIDTH)
    with torch.no_grad():
        assert agree(adopted(module)(x, x, x), module(x, x, x))


def test_masks_that_do_not_fit_are_named() -> None:
    module, x = adopted(attention()), torch.randn(STEPS, SAMPLES, WIDTH)
    with pytest.raises(InputDataError, match="each of the 3 that were not cut"):
        module(x, x, x, attn_mask=torch.zeros(4, STEPS, STEPS))
    with pytest.raises(InputDataError, match="pass both"):
        module(x, x, x, is_causal=True)


# ---------------------------------------------------------------------- cuts


class Encoder(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 20, batch_first=True, **options)
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.layers(self.enter(x)).mean(1))


class Sum(nn.Module):
    """Attention beside a sum, with no norm: its embedding can be cut as well."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
        self.attention = attention(batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        return self.leave(x + self.attention(x, x, x, need_weights=False)[0])


def groups(traced: TracedModel) -> dict[str, int]:
    return {group.name: group.size for group in traced.graph.groups}


def assert_right(traced: TracedModel, batch: Tensor | tuple[Tensor, ...]) -> None:
    inputs = batch if isinstance(batch, tuple) else (batch,)
    for seed in range(3):
        least = {group.name: group.least for group in traced.graph.groups}
        generator = torch.Generator().manual_seed(seed)
        kept = random_cut(groups(traced), generator, None, least)
        small = traced.slice(kept)
        with torch.no_grad():  # with fused layers where there are some
            assert difference(small(*inputs), traced.mask(kept)(*inputs)) <= 1e-4
        full = traced.graph.full() | {name: float(len(units)) for name, units in kept.items()}
        macs = sum(layer.macs(full) for layer in traced.graph.layers)
        assert macs == counted_macs(small, *(x[:1] for x in inputs))
    small.train()(*inputs).sum().backward()


@pytest.mark.parametrize("norm_first", [False, True])
def test_heads_of_encoder_layers_are_cut(norm_first: bool) -> None:
    torch.manual_seed(0)
    batch = torch.randn(SAMPLES, STEPS, 4)
    traced = trace(Encoder(norm_first=norm_first).eval(), batch[:1])
    found = groups(traced)
    assert [found[f"layers.layers.{i}.self_attn.in_proj_weight"] for i in (0, 1)] == [HEADS] * 2
    assert_right(traced, batch)


class Cross(nn.Module):
    """Attention of one sequence to another, or to two."""

    def __init__(self, values: bool, **options: Any) -> None:
        super().__init__()
        self.enter, self.memory = nn.Linear(4, WIDTH), nn.Linear(5, WIDTH)
        self.attention = attention(batch_first=True)
        self.leave, self.values, self.options = nn.Linear(WIDTH, 2), values, options

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        y = self.memory(y)
        values = y * 2 if self.values else y
        return self.leave(self.attention(self.enter(x), y, values, **self.options)[0])


@pytest.mark.parametrize(("values", "options"), [
    (False, {}), (True, {"need_weights": False}), (False, {"attn_mask": CAUSAL[:, :3]}),
])  # fmt: skip
def test_heads_are_cut_across_sequences(values: bool, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(SAMPLES, STEPS, 4), torch.randn(SAMPLES, 3, 5)
    traced = trace(Cross(values, **options).eval(), tuple(x[:1] for x in inputs))
    assert groups(traced) == {
        "memory": WIDTH, "attention.in_proj_weight": HEADS, "attention.out_proj": WIDTH,
    }  # fmt: skip
    assert_right(traced, inputs)


class Biased(nn.Module):
    """Attention with a number for every head and pair of places, which may return its keys."""

    def __init__(self, returns_keys: bool) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 3 * WIDTH), nn.Linear(WIDTH, 2)
        self.bias = nn.Parameter(torch.randn(HEADS, STEPS, STEPS))
        self.returns_keys = returns_keys

    def forward(self, x: Tensor) -> Any:
        parts = self.enter(x).unflatten(2, (3, -1, WIDTH // HEADS)).permute(2, 0, 3, 1, 4)
        q, k, v = parts.unbind(0)
        found = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=self.bias)
        found = self.leave(found.transpose(1, 2).flatten(2))
        return (found, k) if self.returns_keys else found


def test_a_bias_of_scores_has_the_heads_that_stay() -> None:
    torch.manual_seed(0)
    batch = torch.randn(SAMPLES, STEPS, 4)
    traced = trace(Biased(False).eval(), batch[:1])
    assert groups(traced) == {"enter": HEADS}
    assert_right(traced, batch)
    assert traced.slice({"enter": torch.tensor([0, 2])}).bias.shape == (2, STEPS, STEPS)


def test_heads_whose_keys_are_returned_stay_whole() -> None:
    graph = trace(Biased(True).eval(), torch.randn(1, STEPS, 4)).graph
    assert not graph.groups
    assert graph.frozen["enter"] == "it is an output of the network"


@pytest.mark.slow
def test_heads_of_decoder_layers_are_cut() -> None:
    torch.manual_seed(0)
    net = nn.Transformer(WIDTH, 2, 1, 1, 20, batch_first=True).eval()
    inputs = torch.randn(SAMPLES, STEPS, WIDTH), torch.randn(SAMPLES, 3, WIDTH)
    traced = trace(net, tuple(x[:1] for x in inputs))
    heads = [name for name in groups(traced) if name.endswith("in_proj_weight")]
    assert len(heads) == 3
    assert_right(traced, inputs)


def test_heads_and_embedding_are_those_of_smaller_matrices() -> None:
    torch.manual_seed(0)
    net, batch = Sum().eval(), torch.randn(SAMPLES, STEPS, 4)
    traced = trace(net, batch[:1])
    assert groups(traced) == {"enter": WIDTH, "attention.in_proj_weight": HEADS}
    assert_right(traced, batch)
    heads, channels = torch.tensor([0, 2]), torch.tensor([1, 2, 5, 11])
    small = traced.slice({"enter": channels, "attention.in_proj_weight": heads})
    own = torch.cat([torch.arange(4) + 4 * head for head in heads.tolist()])  # inside of a part
    rows = torch.cat([own + part * WIDTH for part in range(3)])
    whole = net.attention
    assert torch.equal(small.attention.in_proj_weight, whole.in_proj_weight[rows][:, channels])
    assert torch.equal(small.attention.out_proj.weight, whole.out_proj.weight[channels][:, own])
    with torch.no_grad():
        x = small.enter(batch)
        q, k, v = (x @ w.T + b for w, b in zip(
            small.attention.in_proj_weight.chunk(3), small.attention.in_proj_bias.chunk(3),
            strict=True,
        ))  # fmt: skip
        parts = [
            (q[..., i : i + 4] @ k[..., i : i + 4].mT / 2).softmax(-1) @ v[..., i : i + 4]
            for i in (0, 4)
        ]
        by_hand = torch.cat(parts, -1) @ small.attention.out_proj.weight.T
        by_hand += small.attention.out_proj.bias
        assert torch.allclose(small.attention(x, x, x)[0], by_hand, atol=1e-6)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    with torch.no_grad():
        assert torch.equal(torch.load(file, weights_only=False)(batch), small(batch))


def test_attention_with_parameters_of_its_own_keeps_its_width() -> None:
    class Net(nn.Module):
        def __init__(self, **options: Any) -> None:
            super().__init__()
            self.enter, self.leave = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 2)
            self.attention = attention(batch_first=True, **options)

        def forward(self, x: Tensor) -> Tensor:
            x = self.enter(x)
            return self.leave(self.attention(x, x, x, need_weights=False)[0])

    for options in ({"add_bias_kv": True}, {"add_zero_attn": True}):
        graph = trace(Net(**options).eval(), torch.randn(1, STEPS, 4)).graph
        assert not graph.groups
        assert graph.frozen["attention.in_proj_weight"]
