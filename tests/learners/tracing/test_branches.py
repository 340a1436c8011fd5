"""Residual branches: found, proved, and left out as if they had never been written."""

from __future__ import annotations

import copy
from functools import cache

import pytest
import torch
from support.libraries import installed
from support.networks.residual_networks import Images, Tokens, Whole, switched
from support.selection import quick
from torch import nn

from amc_compress.learners.tracing.branches import proving
from amc_compress.learners.tracing.branches.left_out import LeftOut
from amc_compress.learners.tracing.labels.counting import (
    count_bytes,
    count_macs,
    count_parameters,
)
from amc_compress.learners.tracing.traced_model import trace
from amc_env import make_cost, with_depth
from amc_env.costs.costs import costs_for

IMAGES, TOKENS = torch.randn(2, 3, 8, 8), torch.randint(0, 11, (2, 5))
NETWORKS = {
    "images": (Images, IMAGES, ["block", "nested", "nested.inner"]),
    "tokens": (Tokens, TOKENS, ["layer.attention", "layer.mlp"]),
}


def seeded(make):
    torch.manual_seed(0)
    network = make().eval()
    for module in network.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # in training both draw other numbers
    return network


@pytest.fixture(scope="module", params=NETWORKS)
def case(request):
    return *traced_once(request.param), *NETWORKS[request.param][1:]


@cache
def traced_once(name):
    make, example, _ = NETWORKS[name]
    network = seeded(make)
    return network, trace(network, example, branches=True)


def test_the_branches_of_a_network_are_found(case):
    _, traced, _, names = case
    assert [b.name for b in traced.graph.branches] == names


def test_a_network_without_a_branch_is_one_that_never_had_it(case):
    network, traced, example, names = case
    for name in names:
        small, right = traced.without(name), switched(copy.deepcopy(network), name)
        torch.testing.assert_close(small(example), right(example))
        torch.testing.assert_close(small.train()(example), right.train()(example))


def test_all_costs_are_those_of_the_smaller_network(case):
    _, traced, example, names = case
    graph = traced.graph
    decisions = with_depth(graph, ())
    costs = {n: make_cost(n, graph, decisions) for n in costs_for(decisions)}
    cut = {g.name: torch.arange(max(g.least, g.size // 2)) for g in graph.groups}
    for skip in range(len(names)):
        out = [n for i, n in enumerate(names) if i != skip]
        values = [float(d.target not in out) for d in decisions]
        kept = {f"{name}:depth": torch.zeros(0, dtype=torch.int64) for name in out}
        small = traced.slice(kept)
        assert costs["macs"](values) == pytest.approx(count_macs(small, example) / 2, rel=1e-6)
        assert costs["params"](values) == count_parameters(small)
        assert costs["bytes"](values) == count_bytes(small)
        both = traced.slice(kept | cut)
        assert both(example).isfinite().all()
        torch.testing.assert_close(both(example), traced.mask(kept | cut)(example))


def test_what_cannot_be_left_out_stays_with_its_reason():
    traced = trace(seeded(Whole), torch.randn(2, 6), branches=True)
    assert traced.graph.branches == ()
    (note,) = traced.graph.notes
    assert "read: what it computes is read elsewhere, too" in note
    assert "scaled: what it adds is computed outside of its modules" in note
    assert "shared: its layers run elsewhere, too" in note


def test_rounding_is_told_from_a_wrong_network_in_double_precision(monkeypatch):
    real = proving.difference  # where a deep trained network cancels large numbers
    monkeypatch.setattr(proving, "difference", lambda x, y: max(real(x, y), 2e-5))
    traced = trace(seeded(Tokens), TOKENS, branches=True)
    assert [b.name for b in traced.graph.branches] == NETWORKS["tokens"][2]


def test_without_the_question_nothing_is_looked_for():
    network, traced = traced_once("images")
    plain, asked = trace(network, IMAGES).graph, traced.graph
    assert plain.branches == ()
    assert (plain.layers, plain.groups) == (asked.layers, asked.groups)


def test_branches_of_a_part_are_those_that_the_whole_has_there():
    network, traced = traced_once("tokens")
    part = trace(network, TOKENS, branches=True, part="layer")
    for branch, right in zip(part.graph.branches, traced.graph.branches, strict=True):
        assert (branch.name, branch.layers) == (right.name, right.layers)
        without = traced.without(branch.name)(TOKENS)
        torch.testing.assert_close(part.without(branch.name)(TOKENS), without, rtol=0, atol=0)


def test_units_of_a_branch_are_rejected(case):
    _, traced, _, names = case
    with pytest.raises(ValueError, match="no units of a branch"):
        traced.slice({f"{names[0]}:depth": torch.tensor([0])})
    with pytest.raises(ValueError, match="got 0 of 'x'"):
        traced.without("x")


def test_a_module_that_is_left_out_computes_nothing():
    small = traced_once("images")[1].without("block")
    assert not any(isinstance(m, nn.BatchNorm2d) for m in small.block.modules())
    assert not list(small.block.parameters())


@pytest.mark.parametrize("norm_first", quick([False, True], True))
def test_halves_of_pytorchs_encoder_layers_go_past_its_fused_kernel(norm_first):
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True, norm_first=norm_first)
    network = nn.Sequential(layer, nn.Linear(8, 3)).eval()
    example = torch.randn(2, 5, 8)
    traced = trace(network, example, branches=True)
    attention, mlp = (b.name for b in traced.graph.branches)
    for name, last in ((attention, "0.self_attn.out_proj"), (mlp, "0.linear2")):
        silent = copy.deepcopy(network)
        for parameter in silent.get_submodule(last).parameters():
            nn.init.zeros_(parameter)
        with torch.no_grad():
            torch.testing.assert_close(traced.without(name)(example), silent(example))


SIZES = {
    "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
WORDS = {"vocab_size": 60, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
FAMILIES = {
    "Bert": ("Model", SIZES | WORDS),
    "Llama": ("ForCausalLM", SIZES | WORDS | {"num_key_value_heads": 1, "use_cache": False}),
    "ViT": ("Model", SIZES | {"image_size": 16, "patch_size": 8}),
}


@pytest.mark.data
@pytest.mark.parametrize("family", FAMILIES)
def test_both_halves_of_all_blocks_of_transformers_are_found(family):
    transformers = installed("transformers")
    kind, options = FAMILIES[family]
    config = getattr(transformers, f"{family}Config")(**options)
    torch.manual_seed(0)
    network = getattr(transformers, f"{family}{kind}")(config).eval()
    words, images = torch.randint(0, 60, (2, 7)), torch.randn(2, 3, 16, 16)
    example = {"pixel_values": images} if family == "ViT" else {"input_ids": words}
    graph = trace(network, example, branches=True).graph
    assert len(graph.branches) == 4
    assert not any("Residual branches that stay" in note for note in graph.notes)


class Cache:
    """Counts tokens by what is written into each place, as those of transformers do."""

    def __init__(self):
        self.written = {}

    def update(self, keys, values, place):
        self.written[place] = self.written.get(place, 0) + keys.shape[2]
        return keys, values

    def get_seq_length(self, place=0):
        return self.written.get(place, 0)


def test_a_cache_counts_tokens_where_an_attention_is_left_out():
    attention = nn.Identity()
    attention.layer_idx = 3
    gone, cache, x = LeftOut(attention, 0, outputs=(True, False)), Cache(), torch.randn(2, 5, 4)
    assert torch.equal(gone(x, past=cache)[0], torch.zeros_like(x))
    gone(x[:, :1], past=cache)
    assert cache.written == {3: 6}
    gone(x, past=cache, encoder_hidden_states=x)  # that of another sequence is not counted here
    assert cache.written == {3: 6}
