"""Rounded weights in the format of ``compressed-tensors``, loaded by stock ``transformers``."""

from __future__ import annotations

import json
import sys
from typing import Any

import numpy as np
import pytest
import torch
from support.libraries import installed
from torch import Tensor, nn

import amc_compress
from amc_compress.learners import CodebookQuantization, UniformQuantization, trace
from amc_compress.learners.export.pretrained import packed_integers
from amc_compress.learners.export.pretrained.folder import save_pretrained
from amc_compress.learners.layers.quantized import quantized_layers
from amc_env import CompressionPlan, InputDataError, MissingDependencyError

TOKENS = {"input_ids": torch.arange(5, 23).view(2, 9)}
SMALL = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, pad_token_id=0,
    intermediate_size=64, bos_token_id=1, eos_token_id=2,
)  # fmt: skip


@pytest.fixture(scope="module")
def transformers() -> Any:
    library = installed("transformers")
    installed("compressed_tensors", "quantization")
    return library


def llama(t: Any) -> Any:
    config = t.LlamaConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, use_cache=False, tie_word_embeddings=True
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return t.LlamaForCausalLM(config).eval()


def bert(t: Any) -> Any:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return t.BertForSequenceClassification(t.BertConfig(**SMALL)).eval()


def cut(network: nn.Module) -> nn.Module:
    """Half of all groups' units, and no first layer."""
    traced = trace(network, TOKENS, branches=True)
    kept = {group.name: torch.arange(0, group.size, 2) for group in traced.graph.groups}
    first = [branch.name for branch in traced.graph.branches if ".0." in branch.name]
    return traced.slice(kept | {f"{name}:depth": torch.arange(0) for name in first})


def rounded(network: nn.Module, kind: type = UniformQuantization, **options: Any) -> nn.Module:
    """The network with 2 to 5 bits in turn."""
    batches = [{**TOKENS, "labels": torch.tensor([0, 1])}]
    learner = kind(network, TOKENS, batches, batches, task="agreement", proxy="none", **options)
    plan = learner.fixed_plan(4)
    turns = {
        name: 2 + number % 4 if value == 4 else value
        for number, (name, value) in enumerate(plan.items())
    }
    small: nn.Module = learner.compress(CompressionPlan(turns))
    return small


def logits(network: nn.Module) -> Tensor:
    with torch.no_grad():
        found: Tensor = network(**TOKENS).logits
    return found


@pytest.mark.parametrize("bits", range(2, 9))
def test_words_hold_the_first_code_in_their_lowest_bits(bits):
    codes = np.random.default_rng(bits).integers(0, 2**bits, (3, 37)).astype(np.uint8)
    words = packed_integers._words(codes, bits).numpy().astype("<u4")
    for row, held in zip(codes, words, strict=True):
        number = sum(int(code) << bits * place for place, code in enumerate(row))
        assert held.tobytes() == number.to_bytes(4 * len(held), "little")
        assert len(held) == -(-37 * bits // 32)


def test_a_cut_decoder_of_groups_is_loaded_by_stock_classes(transformers, tmp_path):
    whole = llama(transformers)
    whole.generation_config.max_length = 77
    options = {"granularity": "group", "group_size": 16, "rounding": "gptq"}
    small = rounded(cut(whole), activation_bits=16, **options)
    saved = save_pretrained(small, tmp_path / "small", TOKENS, weights="compressed-tensors")
    names = {"config.json", "generation_config.json", "model.safetensors"}
    assert {file.name for file in saved.path.iterdir()} == names
    stock = transformers.AutoModelForCausalLM.from_pretrained(saved.path)
    assert stock.config.num_hidden_layers == 2
    assert stock.generation_config.max_length == 77
    assert logits(stock).equal(logits(small))
    assert stock.lm_head.weight is stock.model.embed_tokens.weight
    left = {name for name, layer in quantized_layers(small).items() if "." in name}
    assert len(saved.integers.layers) == len(left) == 2 * 7
    for name in saved.integers.layers:  # layers are numbered anew
        _, _, number, *rest = name.split(".")
        held = small.get_submodule(".".join(["model.layers", str(int(number) + 1), *rest]))
        assert stock.get_submodule(name).weight.equal(held.quantized_weight())
    widths = {g["weights"]["num_bits"] for g in saved.integers.config["config_groups"].values()}
    assert widths == {2, 3, 4, 5, 8}


def test_an_encoder_whose_inputs_are_rounded_is_loaded_by_stock_classes(transformers, tmp_path):
    small = rounded(bert(transformers))
    saved = save_pretrained(small, tmp_path / "small", TOKENS, weights="compressed-tensors")
    stock = transformers.AutoModelForSequenceClassification.from_pretrained(saved.path)
    torch.testing.assert_close(logits(stock), logits(small), rtol=0, atol=1e-6)
    torch.testing.assert_close(
        logits(amc_compress.load(saved.path)), logits(small), rtol=0, atol=1e-6
    )
    assert all("embeddings" in name for name in saved.integers.float_layers)
    packed = save_pretrained(small, tmp_path / "packed", TOKENS)
    assert json.loads((packed.path / "config.json").read_text())["architectures"] == [
        "BertForSequenceClassification"
    ]
    assert not packed.stock


def test_what_the_format_does_not_hold_is_said(transformers, tmp_path, monkeypatch):
    network = llama(transformers)
    target = tmp_path / "small"

    def rejected(small: nn.Module) -> str:
        with pytest.raises(InputDataError) as caught:
            save_pretrained(small, target, TOKENS, weights="compressed-tensors")
        assert not target.exists()
        return str(caught.value)

    assert "symmetric, equally spaced weights" in rejected(rounded(network, symmetric=False))
    assert "symmetric, equally spaced weights" in rejected(rounded(network, CodebookQuantization))
    assert "symmetric, equally spaced weights" in rejected(network)
    traced = trace(network, TOKENS)
    group = next(group for group in traced.graph.groups if "mlp" in group.name)
    uneven = traced.slice({group.name: torch.arange(32)})
    assert "whose layers differ in width" in rejected(rounded(uneven))
    gpt2 = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(vocab_size=99, n_embd=32, n_layer=1, n_head=2, use_cache=False)
    )
    assert "got none" in rejected(rounded(gpt2.eval()))
    with pytest.raises(ValueError, match="weights"):
        save_pretrained(network, target, TOKENS, weights="gguf")
    monkeypatch.setitem(sys.modules, "compressed_tensors", None)
    with pytest.raises(MissingDependencyError, match="pip install compressed-tensors"):
        save_pretrained(network, target, TOKENS, weights="compressed-tensors")
