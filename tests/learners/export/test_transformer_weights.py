"""ONNX files of transformers that were cut, lost layers and got bits: executed, and compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from support.libraries import installed
from torch import nn

from amc_compress.learners import UniformQuantization, trace
from amc_compress.learners.export.integers.onnx_weights import export_weights
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.onnx_options import Integers
from amc_env import CompressionPlan

TOKENS = {"input_ids": torch.arange(5, 23).view(2, 9)}
SIZES = {
    "vocab_size": 99, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4,
    "intermediate_size": 64, "use_cache": False,
}  # fmt: skip
MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "llama": lambda t: t.LlamaForCausalLM(
        t.LlamaConfig(**SIZES, num_key_value_heads=2, head_dim=8, tie_word_embeddings=True)
    ),
    "bert": lambda t: t.BertForSequenceClassification(t.BertConfig(**SIZES)),
    "gpt2": lambda t: t.GPT2LMHeadModel(t.GPT2Config(**SIZES, n_inner=64)),
}


@pytest.fixture(scope="module", params=MODELS)
def cut(request: pytest.FixtureRequest) -> nn.Module:
    """Half of all groups' units, and no first layer."""
    library = installed("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = MODELS[request.param](library).eval()
    traced = trace(network, TOKENS, branches=True)
    kept = {group.name: torch.arange(0, group.size, 2) for group in traced.graph.groups}
    first = [branch.name for branch in traced.graph.branches if ".0." in branch.name]
    small = traced.slice(kept | {f"{name}:depth": torch.arange(0) for name in first})
    assert count(small) < 0.7 * count(network)
    return small


def count(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


def rounded(network: nn.Module) -> nn.Module:
    """The network with 2 to 8 bits in turn."""
    batches = [{**TOKENS, "labels": torch.tensor([0, 1])}]
    learner = UniformQuantization(
        network, TOKENS, batches, batches, task="agreement", proxy="none", activation_bits=16
    )
    turns = {name: 2 + number % 7 for number, name in enumerate(learner.fixed_plan(4))}
    small: nn.Module = learner.compress(CompressionPlan(turns))
    return small


def test_in_float(cut: nn.Module, tmp_path: Path) -> None:
    saved = export_onnx(cut, TOKENS, tmp_path / "float.onnx")
    assert saved.max_difference < 1e-4
    assert saved.agreement == 1


def test_with_bits_of_its_own(cut: nn.Module, tmp_path: Path) -> None:
    saved = export_weights(rounded(cut), TOKENS, tmp_path / "own.onnx")
    assert saved.int4_layers
    assert saved.int8_layers
    assert saved.bytes < export_onnx(cut, TOKENS, tmp_path / "float.onnx").path.stat().st_size


@pytest.mark.parametrize("kind", ["int4", "int8-dynamic"])
def test_with_integers_of_a_float_network(cut: nn.Module, kind: Any, tmp_path: Path) -> None:
    saved = export_weights(cut, TOKENS, tmp_path / "integers.onnx", Integers(kind))
    assert saved.int8_layers if kind == "int8-dynamic" else saved.int4_layers
