"""ONNX files of 4-bit blocks and of 8-bit products, against torch networks of the same rounding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from support.selection import quick
from torch import Tensor, nn

from amc_compress.learners import UniformQuantization
from amc_compress.learners.export.integers import onnx_weights
from amc_compress.learners.export.integers.onnx_blocks import own_blocks, rounded_blocks
from amc_compress.learners.export.integers.onnx_quantized import UnsupportedPrecisionError
from amc_compress.learners.export.integers.onnx_weights import WeightExport, export_weights
from amc_compress.learners.export.onnx_options import Integers, OnnxOptions
from amc_compress.learners.export.onnx_program import ExportError
from amc_compress.learners.export.runtime import open_session
from amc_compress.learners.layers.quantized import quantized_weights

IDS = torch.arange(42).view(6, 7) % 30
BATCHES = [(IDS, torch.arange(6) % 5)]
INPUTS = [48, 72]  # of the two halves: a multiple of 16, and one of 8


class Blocks(nn.Module):
    """Products with and without bias, of token ids, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(30, INPUTS[0])
        self.up = nn.Linear(*INPUTS)
        self.down = nn.Linear(*INPUTS[::-1], bias=False)
        self.twice = nn.Linear(INPUTS[0], INPUTS[0])
        self.head = nn.Linear(INPUTS[0], 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        x = x + self.down(torch.relu(self.up(x)))
        x = self.twice(torch.tanh(self.twice(x)))
        logits: Tensor = self.head(x.mean(1))
        return logits


@pytest.fixture(scope="module")
def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Blocks().eval()


def quantized(network: nn.Module, bits: int, **options: Any) -> nn.Module:
    learner = UniformQuantization(
        network, IDS, BATCHES, BATCHES, proxy="none", activation_bits=16, **options
    )
    return learner.compress(learner.fixed_plan(bits))


def kinds(saved: WeightExport) -> list[str]:
    return [node.op_type for node in onnx.load(saved.path).graph.node]


def test_float_networks_become_blocks(network, tmp_path):
    saved = export_weights(network, IDS, tmp_path / "int4.onnx", Integers(symmetric=True))
    assert saved.int4_layers == ("up", "down", "head")
    assert saved.float_layers == ("twice",)  # its integers would be there twice
    assert saved.tables == ("table",)
    assert saved.said() == (
        "3 layers in 4-bit blocks, 0 in 8-bit products, 1 table in 8 bits; in float: twice"
    )
    assert kinds(saved).count("MatMulNBits") == 3
    assert saved.max_difference < 1e-5
    assert saved.n_images == 6
    assert saved.bytes == saved.path.stat().st_size
    again = export_weights(network, IDS, tmp_path / "64.onnx", Integers(block_size=64))
    assert again.bytes != saved.bytes
    session = open_session(saved.path)
    for shape in ((1, 7), (3, 4)):  # batch and length are free
        assert session.run(None, {"ids": IDS[: shape[0], : shape[1]].numpy()})[0].shape == (
            shape[0], 5,
        )  # fmt: skip


def test_float_networks_become_products_of_integers(network, tmp_path):
    saved = export_weights(network, IDS, tmp_path / "int8.onnx", Integers("int8-dynamic"))
    assert saved.int8_layers == ("up", "down", "head")
    assert kinds(saved).count("MatMulInteger") == 3
    assert saved.max_difference < 1e-3
    assert saved.agreement == 1


def test_what_is_apart_on_average_is_not_kept(network, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_weights, "DYNAMIC_MEAN_TOLERANCE", 1e-9)
    with pytest.raises(ExportError, match=r"differs from torch by .*% in .* \(root mean square"):
        export_weights(network, IDS, tmp_path / "int8.onnx", Integers("int8-dynamic"))
    assert not (tmp_path / "int8.onnx").exists()


@pytest.mark.parametrize("symmetric", [True, False])
def test_blocks_of_a_float_layer_are_the_nearest_values(symmetric):
    weight = torch.linspace(-1, 1.5, 3 * 40).view(3, 40).sin()
    blocks = rounded_blocks(weight, 16, symmetric=symmetric)
    assert blocks.scales.shape == (3, 3)  # the last block is half full
    steps = torch.from_numpy(blocks.scales).repeat_interleave(16, 1)[:, :40]
    # From -8 to 7: the largest weight of the other sign may be a whole step away.
    most = steps.abs() * (1.0 if symmetric else 0.5)
    assert bool(((blocks.values() - weight).abs() <= most + 1e-6).all())


QUANTIZED = [
    (4, {"granularity": "group", "group_size": 16, "symmetric": False}),
    (3, {"granularity": "group", "group_size": 32}),
    (4, {"granularity": "channel"}),
    (2, {"granularity": "tensor", "symmetric": False}),
]


@pytest.mark.parametrize("case", quick(QUANTIZED, QUANTIZED[0]))
def test_a_quantized_network_keeps_its_integers(case, network, tmp_path):
    bits, options = case
    small = quantized(network, bits, **options)
    for name, weight in quantized_weights(small).items():
        if "table" in name or weight.quantizer.bits > 4:
            continue
        blocks = own_blocks(weight, 32)
        assert blocks is not None
        torch.testing.assert_close(blocks.values(), weight.used().detach(), rtol=0, atol=0)
    saved = export_weights(small, IDS, tmp_path / "own.onnx")
    assert saved.int4_layers == ("up", "down")
    assert saved.int8_layers == ("head",)  # the last layer has 8 bits
    assert saved.max_difference < 1e-3


@pytest.mark.slow
def test_where_blocks_do_not_lie_so_layers_stay_float(network, tmp_path):
    small = quantized(network, 4, granularity="split", bucket_size=40)
    saved = export_weights(small, IDS, tmp_path / "own.onnx")
    assert saved.int4_layers == ()
    assert set(saved.float_layers) == {"table", "up", "down", "twice"}
    dynamic = export_weights(small, IDS, tmp_path / "int8.onnx", Integers("int8-dynamic"))
    assert dynamic.int8_layers == ("up", "down", "head")


def test_what_cannot_be_written_is_said(network, tmp_path):
    path = Path(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="a --block-size of 16"):
        Integers(block_size=48)
    with pytest.raises(ValueError, match="--integers"):
        Integers("int3")
    with pytest.raises(UnsupportedPrecisionError, match="leave --half out"):
        export_weights(network, IDS, path, options=OnnxOptions(half=True))
    convolution = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()
    with pytest.raises(UnsupportedPrecisionError, match="Expected linear layers"):
        export_weights(convolution, torch.zeros(1, 1, 5, 5), path)
    assert not path.exists()
