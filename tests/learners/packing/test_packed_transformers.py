"""Random joint plans of a small decoder: the size that is promised, and the same outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from support.selection import quick
from torch import Tensor, nn
from torch.nn import functional

from amc_compress.learners import joint_compression
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_env import CompressionPlan

WIDTH, HEADS, WORDS = 96, 4, 160
GROUPS = {"granularity": "group", "group_size": 32}
KINDS: dict[str, dict[str, Any]] = {
    "groups": {"quantization": {**GROUPS, "rounding": "gptq"}},
    "groups, 2:4": {"quantization": GROUPS, "sparsification": {"pattern": "2:4"}},
    "groups, zeros": {"quantization": GROUPS, "sparsification": {}},
    "codebooks": {"quantizer": "codebook"},
    "codebooks, zeros": {"quantizer": "codebook", "sparsification": {}},
}


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        heads = self.qkv(self.norm(x)).unflatten(-1, (3, -1, WIDTH // HEADS)).movedim(-3, 0)
        query, key, value = heads.transpose(-3, -2)
        found = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(found.transpose(-3, -2).flatten(-2))
        result: Tensor = x + self.down(functional.gelu(self.up(self.norm2(x))))
        return result


class Decoder(nn.Module):
    """Three blocks, and a head tied to the table of words."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList(Block() for _ in range(3))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(self.norm(x))
        return logits


@pytest.mark.parametrize("kind", quick(KINDS, "groups, 2:4"))
def test_random_plans_have_the_size_promised_and_come_back(kind, tmp_path):
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randint(0, WORDS, (8, 12), generator=generator) for _ in range(2)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = Decoder().eval()
    learner = joint_compression(
        network, batches[0], batches, batches, task="agreement", proxy="none",
        pruning={"round_to": 1, "min_ratio": 0.3, "decide_depth": True}, **KINDS[kind],
    )  # fmt: skip
    cost, rng = learner.cost_models["bytes"], np.random.default_rng(0)
    path, errors, seen = tmp_path / "small.packed", [], set()
    for _ in range(4):
        values = [d.choices[rng.integers(len(d.choices))] for d in learner.decisions]
        plan = CompressionPlan.from_values(learner.decisions, values)
        seen |= {decision.kind.name for decision in learner.decisions}
        small, kept = learner.compress(plan), learner.kept_units(plan)
        size = save_packed(small, path, kept=kept, plan=plan, example_input=batches[0][:1])
        errors.append(cost.predict(plan.values_for(learner.decisions)) / size - 1)
        loaded = load_packed(path, network)
        with torch.no_grad():
            assert loaded(batches[0]).equal(small(batches[0]))
        assert loaded.head.weight is loaded.words.weight
        assert quantized_layers(loaded).keys() == quantized_layers(small).keys()
        assert masked_layers(loaded).keys() == masked_layers(small).keys()
    assert {"depth", "keep_ratio", "weight_bits"} <= seen
    assert ("density" in seen) == ("sparsification" in KINDS[kind])
    assert max(map(abs, errors)) < 0.03, errors
