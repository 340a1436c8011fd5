"""Folders of compressed networks: stock classes of ``transformers`` load them, or ours do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from support.libraries import installed
from torch import Tensor, nn

import amc_compress
from amc_compress.learners import UniformQuantization, trace
from amc_compress.learners.export.pretrained import folder as pretrained
from amc_compress.learners.tasks.inputs import ask, to_inputs
from amc_env import InputDataError

SMALL = dict(
    vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
    intermediate_size=48, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)  # fmt: skip
TOKENS = {"input_ids": torch.arange(5, 23).view(2, 9)}


@pytest.fixture(scope="module")
def transformers() -> Any:
    return installed("transformers")


def bert(t: Any) -> nn.Module:
    return t.BertModel(t.BertConfig(**SMALL))


def gpt2(t: Any) -> nn.Module:
    config = dict(vocab_size=99, n_embd=32, n_layer=2, n_head=4, use_cache=False, n_positions=32)
    return t.GPT2LMHeadModel(t.GPT2Config(**config, bos_token_id=1, eos_token_id=2))


def llama(t: Any) -> nn.Module:
    config = t.LlamaConfig(**SMALL, num_key_value_heads=2, use_cache=False)
    return t.LlamaForCausalLM(config)


def qwen3(t: Any) -> nn.Module:
    config = t.Qwen3Config(**SMALL, num_key_value_heads=2, head_dim=8, use_cache=False)
    return t.Qwen3ForCausalLM(config)


def vit(t: Any) -> nn.Module:
    config = {k: v for k, v in SMALL.items() if k != "vocab_size" and "token" not in k}
    return t.ViTModel(t.ViTConfig(**config, image_size=16, patch_size=4))


def step(t: Any) -> nn.Module:
    if not hasattr(t, "Step3p7TextModel"):
        pytest.skip("this version of transformers reads no per_layer_config")
    config = t.Step3p7TextConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, mlp_layer_types=["dense"] * 2,
        layer_types=["full_attention"] * 2, use_cache=False, max_position_embeddings=64,
        sliding_window=16,
    )  # fmt: skip
    return t.Step3p7TextModel(config)


def cut(make: Any, t: Any, names: tuple[str, ...], *, evenly: bool) -> Any:
    """A network, its example, and what is left of it: half of the groups with such names."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(t).eval()
        for parameter in network.parameters():  # biases and norms count as well
            nn.init.normal_(parameter, std=0.3)
    example: Any = {"pixel_values": torch.linspace(-1, 1, 2 * 3 * 16 * 16).view(2, 3, 16, 16)}
    example = example if make is vit else TOKENS
    traced = trace(network, example)
    groups = [g for g in traced.graph.groups if any(name in g.name for name in names)]
    assert len(groups) >= 2
    kept = {
        group.name: torch.arange(group.size)[:: 2 if evenly or not number else 1]
        for number, group in enumerate(groups)
    }
    return traced.slice(kept), example, kept


def output(network: nn.Module, example: Any) -> Tensor:
    with torch.no_grad():
        return ask(network, to_inputs(example))[0]


@pytest.mark.parametrize(
    ("make", "names", "changed"),
    [
        (bert, ("intermediate",), {"intermediate_size": 24}),
        (vit, ("mlp",), {"intermediate_size": 24}),
        (gpt2, ("mlp",), {"n_inner": 64}),
        (gpt2, ("",), {"n_embd": 16, "n_head": 2}),
        (
            llama,
            ("",),
            {
                "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2,
                "num_key_value_heads": 1,
            },
        ),
    ],
    ids=["bert", "vit", "gpt2", "gpt2-all", "llama-all"],
)  # fmt: skip
def test_even_widths_are_loaded_by_stock_classes(make, names, changed, transformers, tmp_path):
    small, example, kept = cut(make, transformers, names, evenly=True)
    saved = pretrained.save_pretrained(small, tmp_path / "small", example, kept=kept)
    assert saved.stock
    assert changed.items() <= saved.config.items()
    automatic = (
        transformers.AutoModelForCausalLM if make in (gpt2, llama) else transformers.AutoModel
    )
    stock = automatic.from_pretrained(tmp_path / "small")
    assert type(stock).__module__.startswith("transformers.models.")
    torch.testing.assert_close(output(stock, example), output(small, example), rtol=0, atol=1e-5)
    assert sum(p.numel() for p in stock.parameters()) == sum(p.numel() for p in small.parameters())


def test_heads_of_single_layers_are_loaded_by_a_class_that_reads_them(transformers, tmp_path):
    small, example, kept = cut(step, transformers, ("q_proj",), evenly=False)
    saved = pretrained.save_pretrained(small, tmp_path / "small", example, kept=kept)
    assert saved.stock
    assert json.loads((saved.path / "config.json").read_text())["per_layer_config"] == {
        "0": {"num_attention_heads": 2, "num_key_value_heads": 1}
    }
    stock = transformers.Step3p7TextModel.from_pretrained(saved.path)
    torch.testing.assert_close(output(stock, example), output(small, example), rtol=0, atol=1e-5)


@pytest.mark.parametrize("make", [gpt2, qwen3])
def test_a_decoder_without_a_layer_is_loaded_by_stock_classes(make, transformers, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(transformers).eval()
    traced = trace(network, TOKENS, branches=True)
    first = [branch.name for branch in traced.graph.branches if ".0." in branch.name]
    assert len(first) == 2
    kept = {f"{name}:depth": torch.arange(0) for name in first}
    small = traced.slice(kept)
    saved = pretrained.save_pretrained(small, tmp_path / "small", TOKENS, kept=kept)
    assert saved.stock
    stock = transformers.AutoModelForCausalLM.from_pretrained(saved.path)
    assert stock.config.num_hidden_layers == 1
    torch.testing.assert_close(output(stock, TOKENS), output(small, TOKENS), rtol=0, atol=1e-5)
    one = {first[0] + ":depth": torch.arange(0)}  # half of a layer no class can do without
    half = traced.slice(one)
    saved = pretrained.save_pretrained(half, tmp_path / "half", TOKENS, kept=one)
    assert not saved.stock
    torch.testing.assert_close(output(amc_compress.load(saved.path), TOKENS), output(half, TOKENS))


def no_pickle(*_: Any, **__: Any) -> Any:
    raise AssertionError("a pickle was opened")


@pytest.mark.parametrize("make", [bert, gpt2, llama, vit])
def test_uneven_widths_are_loaded_in_one_line(make, transformers, tmp_path, monkeypatch):
    small, example, kept = cut(make, transformers, ("",), evenly=False)
    if generates := make in (gpt2, llama):
        small.generation_config.max_length = 77
    saved = pretrained.save_pretrained(small, tmp_path / "small", example, kept=kept)
    assert not saved.stock
    names = {"config.json", "model.packed", *(["generation_config.json"] * generates)}
    assert {file.name for file in saved.path.iterdir()} == names
    for where in ("torch.load", "pickle.load", "pickle.loads", "pickle.Unpickler"):
        monkeypatch.setattr(where, no_pickle)
    loaded = amc_compress.load(saved.path)
    assert not generates or loaded.generation_config.max_length == 77
    torch.testing.assert_close(output(loaded, example), output(small, example), rtol=0, atol=0)
    assert {k: v.shape for k, v in loaded.state_dict().items()} == {
        k: v.shape for k, v in small.state_dict().items()
    }


def test_quantized_networks_and_their_tokenizer_are_stored_small(transformers, tmp_path):
    network = bert(transformers).eval()
    batches = [{**TOKENS, "labels": torch.tensor([0, 1])}]
    learner = UniformQuantization(network, TOKENS, batches, batches, task="agreement", proxy="none")
    small = learner.compress(learner.fixed_plan(4))
    source = tmp_path / "tokenizer"
    source.mkdir()
    (source / "vocab.txt").write_text("[PAD]\n")
    (source / "weights.bin").write_text("")
    saved = pretrained.save_pretrained(small, tmp_path / "small", TOKENS, tokenizer=source)
    loaded = amc_compress.load(saved.path)
    torch.testing.assert_close(output(loaded, TOKENS), output(small, TOKENS), rtol=0, atol=0)
    assert (saved.path / "vocab.txt").read_bytes() == (source / "vocab.txt").read_bytes()
    assert not (saved.path / "weights.bin").exists()
    assert saved.bytes < sum(p.numel() for p in network.parameters())  # of 4 bytes each


def test_half_precision_comes_back(transformers, tmp_path):
    small, example, kept = cut(bert, transformers, ("",), evenly=False)
    saved = pretrained.save_pretrained(small.bfloat16(), tmp_path / "small", example, kept=kept)
    loaded = amc_compress.load(saved.path)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}
    assert {k: v.sum().item() for k, v in loaded.state_dict().items()} == {
        k: v.sum().item() for k, v in small.state_dict().items()
    }


class Sentences(nn.Module):
    """A network of transformers and what a user puts around it."""

    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor) -> Tensor:
        hidden: Tensor = self.encoder(input_ids=input_ids)[0]
        return hidden.mean(1)


def test_the_part_of_a_network_is_written_alone(transformers, tmp_path):
    whole = Sentences(bert(transformers)).eval()
    traced = trace(whole, TOKENS, part="encoder")
    group = traced.graph.groups[0]
    kept = {group.name: torch.arange(group.size)[1:]}
    small = traced.slice(kept)
    saved = pretrained.save_pretrained(small, tmp_path / "small", TOKENS, kept=kept, part="encoder")
    loaded = amc_compress.load(saved.path)
    expected = output(small.encoder, TOKENS)
    torch.testing.assert_close(output(loaded, TOKENS), expected, rtol=0, atol=0)


def test_what_cannot_be_written_or_loaded_is_said(transformers, tmp_path, monkeypatch):
    example = torch.zeros(1, 4)
    with pytest.raises(InputDataError, match="of a class that transformers has, got Linear"):
        pretrained.save_pretrained(nn.Linear(4, 2), tmp_path / "small", example)
    assert not (tmp_path / "small").exists()
    cut_network, _, _ = cut(bert, transformers, ("",), evenly=False)
    with pytest.raises(InputDataError, match=r"the units that stay \(kept\)"):
        pretrained.save_pretrained(cut_network, tmp_path / "small", TOKENS)
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "note").write_text("mine")
    with pytest.raises(InputDataError, match="a new or an empty folder"):
        pretrained.save_pretrained(bert(transformers), tmp_path / "used", TOKENS)
    with pytest.raises(InputDataError, match="files of a tokenizer"):
        pretrained.save_pretrained(
            bert(transformers), tmp_path / "small", TOKENS, tokenizer=tmp_path
        )
    with pytest.raises(InputDataError, match=r"a folder with config\.json"):
        amc_compress.load(tmp_path / "used")
    config = {"model_type": "bert", "architectures": ["AutoModel"]}
    Path(tmp_path / "used" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputDataError, match="name of a class of transformers"):
        amc_compress.load(tmp_path / "used")
    config["architectures"] = ["BertModel"]
    Path(tmp_path / "used" / "config.json").write_text(json.dumps(config))
    torch.save(bert(transformers).state_dict(), tmp_path / "used" / "pytorch_model.bin")
    with pytest.raises(InputDataError, match=r"model\.packed or model\.safetensors"):
        amc_compress.load(tmp_path / "used")
    headless = transformers.BertModel(transformers.BertConfig(**SMALL))
    headless.save_pretrained(tmp_path / "headless")
    config = json.loads((tmp_path / "headless" / "config.json").read_text())
    config["architectures"] = ["BertForSequenceClassification"]
    (tmp_path / "headless" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputDataError, match=r"all weights of Bert.* got none of classifier\.bias"):
        amc_compress.load(tmp_path / "headless")
