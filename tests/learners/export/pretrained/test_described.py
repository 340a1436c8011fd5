"""What the configuration of a cut network says, and that its parts compute as before."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.libraries import installed

from amc_compress.learners import trace
from amc_compress.learners.export.pretrained.described import describe

TOKENS = {"input_ids": torch.arange(5, 23).view(2, 9)}


@pytest.fixture(scope="module")
def network() -> Any:
    t = installed("transformers")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = t.LlamaConfig(
            vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=48,
        )  # fmt: skip
        return t.LlamaForCausalLM(config).eval()


def cut(network: Any, units: dict[str, list[int]]) -> Any:
    """A network of which each group has lost what is listed for it, by place and role."""
    traced = trace(network, TOKENS)
    kept, count = {}, dict.fromkeys(units, 0)
    for group in traced.graph.groups:
        left = units.get(group.role, [group.size])
        number = left[min(count.get(group.role, 0), len(left) - 1)]
        count[group.role] = count.get(group.role, 0) + 1
        kept[group.name] = torch.arange(number)
    return traced.slice(kept)


def logits(network: Any) -> torch.Tensor:
    with torch.no_grad():
        return network(**TOKENS).logits


def test_a_configuration_follows_equal_cuts(network: Any) -> None:
    small = cut(network, {"heads": [1], "mlp": [20]})
    before = logits(small)
    assert describe(small, TOKENS) == ""
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
    assert small.config.intermediate_size == 20
    assert (network.config.num_attention_heads, network.config.intermediate_size) == (4, 48)
    assert torch.equal(logits(small), before)


def test_a_configuration_stays_where_layers_differ_and_says_so(network: Any) -> None:
    small = cut(network, {"mlp": [20, 30]})
    assert "widths of every layer" in describe(small, TOKENS)
    assert small.config.intermediate_size == 48
    traced = trace(network, TOKENS, branches=True)
    gone = {f"{b.name}:depth": torch.arange(0) for b in traced.graph.branches if ".0." in b.name}
    shallow = traced.slice(gone)
    assert "left out" in describe(shallow, TOKENS)
    assert shallow.config.num_hidden_layers == 2


def test_what_has_nothing_to_describe_is_left_alone(network: Any) -> None:
    assert describe(network, TOKENS) == ""
    assert describe(torch.nn.Linear(2, 2), torch.zeros(1, 2)) == ""
