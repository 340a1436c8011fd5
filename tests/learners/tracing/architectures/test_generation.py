"""Decoders of ``transformers`` after a cut: through the front door, with a cache, with ties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.networks.zoo import build
from torch import Tensor, nn

from amc_compress import compress
from amc_compress.learners.tracing.proof import random_cut
from amc_compress.learners.tracing.traced_model import trace

pytestmark = [pytest.mark.data, pytest.mark.filterwarnings("default")]
DECODERS = (
    "GPT-2", "GPT-NeoX", "Llama", "Mistral", "Qwen2", "Qwen3", "Gemma", "Gemma2", "Gemma3",
    "Gemma.one", "Falcon", "Falcon.one", "GPTBigCode", "Phi3", "StableLM", "GPT-J",
)  # fmt: skip
NEW = 6
WAYS = ({}, {"use_cache": False}, {"cache_implementation": "static"}, {"num_beams": 3})


def generated(net: Any, ids: Tensor, **more: Any) -> Tensor:
    found: Tensor = net.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW, do_sample=False,
        eos_token_id=None, pad_token_id=0, **more,
    )  # fmt: skip
    return found


def slowly(net: nn.Module, ids: Tensor) -> Tensor:
    """The likeliest tokens, each by a run over all before it."""
    for _ in range(NEW):
        with torch.no_grad():
            ids = torch.cat((ids, net(ids).logits[:, -1:].argmax(-1)), 1)
    return ids


@pytest.mark.slow
@pytest.mark.parametrize("name", [*DECODERS, "Phi"])
def test_a_cut_decoder_generates_with_a_cache_of_its_heads(name: str) -> None:
    net, example, _ = build(f"hf.{name}")
    traced = trace(net, example)
    sizes = {group.name: group.size for group in traced.graph.groups}
    kept = random_cut(sizes, torch.Generator().manual_seed(0), 0.5)
    small = traced.slice(kept)
    ids = torch.randint(5, 90, (2, 14), generator=torch.Generator().manual_seed(1))
    expected = slowly(traced.mask(kept), ids)
    assert torch.equal(generated(small, ids), expected)
    assert torch.equal(generated(small, ids, use_cache=False), expected)
    beams = generated(traced.mask(kept), ids, use_cache=False, num_beams=3)
    assert torch.equal(generated(small, ids, num_beams=3), beams)
    padded = torch.ones_like(ids)
    padded[0, :5] = 0
    both = [
        net.generate(
            ids,
            attention_mask=padded,
            max_new_tokens=NEW,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
        )
        for net in (small, traced.mask(kept))
    ]
    assert torch.equal(*both)
    words, head = small.get_input_embeddings(), small.get_output_embeddings()
    assert (words.weight is head.weight) == net.config.tie_word_embeddings
    assert head.in_features == words.weight.shape[1] < 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["GPT-2", "Llama", "Gemma3"])
@pytest.mark.parametrize("place", [".0.", ".1."])
def test_a_decoder_without_a_block_generates_with_any_cache(name: str, place: str) -> None:
    net, example, _ = build(f"hf.{name}")
    traced = trace(net, example, branches=True)
    gone = [branch.name for branch in traced.graph.branches if place in branch.name]
    kept = {f"{branch}:depth": torch.zeros(0, dtype=torch.int64) for branch in gone}
    small, whole = traced.slice(kept), traced.mask(kept)
    ids = torch.randint(5, 90, (2, 14), generator=torch.Generator().manual_seed(1))
    expected = slowly(whole, ids)
    for way in WAYS:
        reference = generated(whole, ids, use_cache=False, num_beams=3)
        found = generated(small, ids, **way)
        assert torch.equal(found, reference if "num_beams" in way else expected), way


def test_a_decoder_comes_out_of_the_front_door_and_generates() -> None:
    net, _, _ = build("hf.GPT-2")
    tokens = torch.randint(5, 90, (16, 12), generator=torch.Generator().manual_seed(0))
    batches = [{"input_ids": tokens[i : i + 4]} for i in range(0, 16, 4)]
    result = compress(
        net, batches, batches, budget={"macs": 0.5}, task="language-modelling", evaluations=2,
        agent="random", quiet=True,
    )  # fmt: skip
    small: Any = result.network
    assert small.config.n_layer == 2
    assert small.config.n_embd == small.transformer.wte.embedding_dim < net.config.n_embd
    assert small.lm_head.weight is small.transformer.wte.weight
    ids = tokens[:1, :5]
    assert torch.equal(generated(small, ids), slowly(small, ids))
    assert sum(p.numel() for p in small.parameters()) < sum(p.numel() for p in net.parameters())
