"""Layers whose weight has a row per input, as GPT-2's, are compressed as linear ones are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import (
    CodebookQuantization,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
)
from amc_compress.learners.export.integers.onnx_quantized import export_quantized
from amc_compress.learners.packing.packed_file import load_packed, save_packed
from amc_env import CompressionEnv

WIDTH, CLASSES = 16, 3


class Conv1D(nn.Module):
    """As that of ``transformers``, which names its shape so."""

    def __init__(self, outputs: int, inputs: int) -> None:
        super().__init__()
        self.nf, self.nx = outputs, inputs
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        size = x.size()[:-1] + (self.nf,)  # noqa: RUF005 - as there
        return torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight).view(size)


Conv1D.__module__ = "transformers.pytorch_utils"
Conv1D.__qualname__ = "Conv1D"


class Network(nn.Module):
    """A head behind a residual branch of two layers, each made by ``layer(outputs, inputs)``."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up, self.down = layer(4 * WIDTH, WIDTH), layer(WIDTH, 4 * WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        logits: Tensor = self.head(x.mean(1))
        return logits


@pytest.fixture(scope="module")
def networks() -> tuple[nn.Module, nn.Module]:
    """One of linear layers, and one with the same weights the other way round."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        linear = Network(lambda outputs, inputs: nn.Linear(inputs, outputs)).eval()
    state = linear.state_dict()
    for name in ("up", "down"):
        state[f"{name}.weight"] = state[f"{name}.weight"].t().contiguous()
    other = Network(Conv1D).eval()
    other.load_state_dict(state)
    return linear, other


def data(count: int, seed: int) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(count, 5, WIDTH, generator=generator),
            torch.randint(0, CLASSES, (count,), generator=generator),
        )
    ]


EXAMPLE = torch.zeros(1, 5, WIDTH)
GROUPS = {"granularity": "group", "group_size": 8, "weight_range": "mse"}
LEARNERS: dict[str, tuple[Any, dict[str, Any], str]] = {
    "per channel": (UniformQuantization, {}, "mean_bits=4/32"),
    "per tensor": (UniformQuantization, {"granularity": "tensor"}, "mean_bits=4/32"),
    "groups": (UniformQuantization, GROUPS, "mean_bits=4/32"),
    "GPTQ": (UniformQuantization, {"rounding": "gptq"}, "mean_bits=4/32"),
    "GPTQ of groups": (UniformQuantization, {**GROUPS, "rounding": "gptq"}, "mean_bits=4/32"),
    "act order": (
        UniformQuantization,
        {**GROUPS, "rounding": "gptq", "act_order": True},
        "mean_bits=4/32",
    ),
    "codebook": (CodebookQuantization, {}, "mean_bits=4/32"),
    "sparse": (WeightSparsification, {}, "params=0.5"),
    "2:4": (WeightSparsification, {"pattern": "2:4"}, "params=0.8"),
    "SparseGPT": (WeightSparsification, {"repair": "sparsegpt"}, "params=0.5"),
    "joint": (joint_compression, {"pruning": {"round_to": 4}}, "macs=0.6,bytes=0.3"),
    "joint GPTQ": (
        joint_compression,
        {"quantization": {"rounding": "gptq"}, "pruning": {"round_to": 4}},
        "macs=0.6,bytes=0.3",
    ),
}


def compressed(network: nn.Module, name: str) -> tuple[Any, nn.Module, Any]:
    make, options, budget = LEARNERS[name]
    if make in (UniformQuantization, CodebookQuantization):
        options = {**options, "first_last_bits": None}
    learner = make(network, EXAMPLE, data(64, 0), data(32, 1), precision="fp32", **options)
    env = CompressionEnv(learner, budget)
    plan = env.decode(np.full(env.n_decisions, 0.55))
    return learner, learner.compress(plan), plan


@pytest.mark.parametrize("name", LEARNERS)
def test_they_are_compressed_as_linear_layers_are(networks, name):
    linear, other = (compressed(network, name) for network in networks)
    assert dict(linear[2]) == dict(other[2])
    assert {d.target for d in other[0].decisions} >= {"up", "down"}
    images = data(32, 2)[0][0]
    with torch.no_grad():
        expected = linear[1](images)
        difference = other[1](images) - expected
        changed = other[1](images) - networks[1](images)
    assert float(difference.abs().max()) < 1e-4 * float(expected.abs().max())
    assert float(changed.abs().max()) > 1e-3


class Square(nn.Module):
    """Layers of equal width, where weights the other way round would fit too."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.first, self.square = nn.Linear(WIDTH, WIDTH), layer(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.relu(self.square(torch.relu(self.first(x)))).mean(1))
        return logits


@pytest.mark.parametrize("bits", [8, 16], ids=["integers", "weights alone"])
@pytest.mark.parametrize("make", [Square, Network])
def test_files_of_integers_hold_them(make, bits, tmp_path: Path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = make(Conv1D)
        for layer in network.modules():
            if isinstance(layer, Conv1D):  # scales that differ from one output to the next
                nn.init.normal_(layer.weight).data.mul_(torch.linspace(0.1, 2, layer.nf))
    images = data(64, 0)
    learner = UniformQuantization(
        network.eval(), EXAMPLE, images, images, precision="fp32", proxy="none",
        activation_bits=bits,
    )  # fmt: skip
    small = learner.compress(learner.fixed_plan(8))
    saved = export_quantized(
        small, EXAMPLE, tmp_path / "int8.onnx", calibration=images[0][0], images=images[0][0]
    )
    with torch.no_grad():
        largest = float(small(images[0][0]).abs().max())
    assert saved.max_difference < 0.05 * largest  # sums between layers have 8 bits as well


@pytest.mark.parametrize("name", ["groups", "codebook", "2:4", "joint"])
def test_packed_files_hold_them(networks, name, tmp_path: Path):
    learner, small, plan = compressed(networks[1], name)
    kept = learner.kept_units(plan) if hasattr(learner, "kept_units") else None
    path = tmp_path / "small.packed"
    save_packed(small, path, kept=kept, plan=plan, example_input=EXAMPLE)
    images = data(32, 2)[0][0]
    with torch.no_grad():
        again = load_packed(path, learner.original)
        torch.testing.assert_close(again(images), small(images), rtol=0, atol=0)
    linear = compressed(networks[0], name)
    kept = linear[0].kept_units(plan) if kept is not None else None
    save_packed(linear[1], tmp_path / "linear", kept=kept, plan=plan, example_input=EXAMPLE)
    sizes = path.stat().st_size, (tmp_path / "linear").stat().st_size
    assert sizes[0] == pytest.approx(sizes[1], rel=0.03)
