"""Packed files: what is loaded computes the same bits as what was saved, or says why it cannot."""

from __future__ import annotations

import copy
import struct
import zlib

import numpy as np
import pytest
import torch
from support.packed_reader import reader
from torch import nn

from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import fold_norms, quantize_layer, replace_module
from amc_compress.learners.packing.format import MAGIC, PREFIX
from amc_compress.learners.packing.packed_file import (
    load_packed,
    packed_bytes,
    read_packed_plan,
    save_packed,
)
from amc_compress.learners.quantization.codebook.learner import set_mode
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer, affine_parameters
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.testing.networks import EXAMPLE, Residual, depthwise, make_data, plain
from amc_compress.learners.tracing.traced_model import trace
from amc_env import CompressionPlan
from amc_env.errors import InputDataError, RunFolderError

NETWORKS = {"plain": plain, "residual": Residual, "depthwise": depthwise}
KINDS = (
    "codebook",
    "scaled codebook",
    "channel codebooks",
    "symmetric",
    "affine",
    "split",
    "groups",
    "float",
)


def weight_quantizer(weight: torch.Tensor, kind: str, bits: int):
    if kind == "float":
        return None
    if kind == "codebook":
        return CodebookQuantizer.fit(weight, bits)
    if kind == "scaled codebook":
        return CodebookQuantizer.fit(weight, bits, channel_scales=True)
    if kind == "channel codebooks":
        return CodebookQuantizer.fit(weight, bits, granularity="channel")
    if kind == "split":
        return CodebookQuantizer.fit(weight, bits, granularity="split", bucket_size=100)
    if kind == "groups":
        shared = {"symmetric": False, "granularity": "group", "bucket_size": 7}
        return UniformQuantizer(bits, *weight_scales(weight, bits, "minmax", **shared), **shared)
    low, high = weight.flatten(1).amin(1), weight.flatten(1).amax(1)
    scale, zero = affine_parameters(low, high, bits, kind == "symmetric")
    return UniformQuantizer(bits, scale, zero, symmetric=kind == "symmetric", granularity="channel")


def quantized(network: nn.Module, kinds: tuple[str, ...], seed: int = 0) -> nn.Module:
    """Folds and quantizes every layer, with random bits from 2 to 8."""
    network = copy.deepcopy(network).eval()
    fold_norms(network)
    rng = np.random.default_rng(seed)
    layers = [n for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    for index, name in enumerate(layers):
        layer = network.get_submodule(name)
        weights = weight_quantizer(layer.weight, kinds[index % len(kinds)], int(rng.integers(2, 9)))
        inputs = UniformQuantizer(
            8, torch.tensor([0.03]), torch.tensor([int(rng.integers(0, 99))]), symmetric=False
        )
        replace_module(network, name, quantize_layer(layer, weights, inputs if index % 3 else None))
    return network.eval()


def original(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORKS[name]()
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.running_mean, -0.5, 0.5)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    return network.eval()


IMAGES = make_data(8, 4)[0][0]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kinds", [*((k,) for k in KINDS), KINDS])
def test_outputs_and_codes_survive(name, kinds, tmp_path):
    network = quantized(original(name), kinds)
    size = save_packed(network, tmp_path / "net.packed")
    assert size == (tmp_path / "net.packed").stat().st_size
    # The weights of the network that it is loaded into do not matter.
    loaded = load_packed(tmp_path / "net.packed", original(name, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    layers = quantized_layers(loaded)
    for layer_name, layer in quantized_layers(network).items():
        other = layers[layer_name]
        if layer.weight_quantizer is not None:
            codes = layer.weight_quantizer.encode(layer.weight)
            assert torch.equal(other.weight_quantizer.encode(other.weight), codes)
            assert torch.equal(other.weight, layer.quantized_weight())
    save_packed(loaded, tmp_path / "again.packed")
    assert (tmp_path / "again.packed").read_bytes() == (tmp_path / "net.packed").read_bytes()


@pytest.mark.parametrize("name", NETWORKS)
def test_sliced_networks_come_back_sliced(name, tmp_path):
    base = original(name)
    traced = trace(base, EXAMPLE)
    rng = np.random.default_rng(0)
    kept = {
        g.name: torch.from_numpy(np.sort(rng.permutation(g.size)[: max(1, g.size // 2)]))
        for g in traced.graph.groups
    }
    network = quantized(traced.slice(kept), KINDS)
    save_packed(network, tmp_path / "a", kept=kept, example_input=EXAMPLE)
    save_packed(network, tmp_path / "b", kept=kept)
    for loaded in (
        load_packed(tmp_path / "a", original(name, seed=1)),
        load_packed(tmp_path / "b", original(name, seed=1), example_input=EXAMPLE),
    ):
        with torch.no_grad():
            assert torch.equal(loaded(IMAGES), network(IMAGES))
    with pytest.raises(InputDataError, match="example_input"):
        load_packed(tmp_path / "b", base)


def test_fixed_assignments_are_stored_as_codes(tmp_path):
    network = quantized(original("plain"), ("codebook",))
    set_mode(network, "clusters")
    with torch.no_grad():
        for layer in quantized_layers(network).values():
            order = torch.randperm(layer.weight_quantizer.codebook.shape[1])
            layer.weight_quantizer.codebook.data = layer.weight_quantizer.codebook[:, order]
    save_packed(network, tmp_path / "net")
    loaded = load_packed(tmp_path / "net", original("plain"))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    assert not any("assignments" in key for key in loaded.state_dict())


def test_what_is_loaded_can_be_trained_and_the_original_is_left_alone(tmp_path):
    base = original("residual")
    before = copy.deepcopy(base.state_dict())
    save_packed(quantized(base, ("codebook",)), tmp_path / "net")
    loaded = load_packed(tmp_path / "net", base)
    loaded.train()(IMAGES).square().sum().backward()
    assert all(
        layer.weight_quantizer.codebook.grad.abs().sum() > 0
        for layer in quantized_layers(loaded).values()
    )
    assert all(torch.equal(v, before[k]) for k, v in base.state_dict().items())
    assert any(isinstance(m, nn.BatchNorm2d) for m in base.modules())


class WithToken(nn.Module):
    """Has a parameter of its own, besides those of its layers."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(4))
        self.steps: torch.Tensor
        self.register_buffer("steps", torch.tensor([3, -70000]))
        self.head = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x + self.token) * self.steps[0]


def test_parameters_and_counters_of_the_network_itself_survive(tmp_path):
    network = WithToken().eval()
    network.head = quantize_layer(
        network.head, weight_quantizer(network.head.weight, "split", 3), None
    )
    save_packed(network, tmp_path / "net")
    loaded = load_packed(tmp_path / "net", WithToken())
    x = torch.randn(2, 4)
    assert torch.equal(loaded(x), network(x))
    assert loaded.steps.dtype == torch.int64
    assert loaded.steps.tolist() == [3, -70000]
    arrays = reader()["read"](tmp_path / "net")[1]
    assert np.array_equal(arrays["token"], network.token.detach().numpy())


def test_plans_are_stored(tmp_path):
    network = quantized(original("plain"), ("codebook",))
    plan = CompressionPlan({"0:weight_bits": 4.0, "3:weight_bits": 3.0})
    save_packed(network, tmp_path / "net", plan=plan)
    assert read_packed_plan(tmp_path / "net") == plan
    save_packed(network, tmp_path / "net")
    assert read_packed_plan(tmp_path / "net") is None


@pytest.mark.parametrize("name", NETWORKS)
def test_the_reader_in_the_docs_reads_every_kind(name, tmp_path):
    network = quantized(original(name), KINDS)
    save_packed(network, tmp_path / "net")
    scope = reader()
    header, arrays, masks = scope["read"](tmp_path / "net")
    for key, tensor in network.state_dict().items():
        layer = quantized_layers(network).get(key.removesuffix(".weight"))
        if layer is not None and layer.weight_quantizer is not None:
            values = scope["weights"](header, arrays, masks, key.removesuffix(".weight"))
            assert np.array_equal(values, layer.quantized_weight().detach().numpy()), key
        else:
            assert np.array_equal(arrays[key], tensor.numpy()), key


def test_damaged_files_are_told_apart(tmp_path):
    network = quantized(original("plain"), ("codebook",))
    data = packed_bytes(network)
    path = tmp_path / "net.packed"

    def rejected(content: bytes, message: str) -> None:
        path.write_bytes(content)
        with pytest.raises(InputDataError, match=message):
            load_packed(path, original("plain"))

    with pytest.raises(InputDataError, match="Expected a packed network at"):
        load_packed(tmp_path / "missing", original("plain"))
    rejected(b"", "cut short")
    rejected(b"PK\3\4" + data, "begins otherwise")
    for end in (10, 27, 40, len(data) // 2, len(data) - 1):
        rejected(data[:end], "cut short")
    rejected(data + b"\0", "appended")
    rejected(data[:8] + struct.pack("<I", 3) + data[12:], "version 3")
    for at in (30, len(data) // 2, len(data) - 1):
        rejected(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :], "damaged")
    for text in (b"{}", b"[]", b'{"tensors":{"0":[["weight","O",[1]]]}}', b"\xff"):
        header = zlib.compress(text)
        prefix = PREFIX.pack(MAGIC, 1, len(header), 0, zlib.crc32(header))
        rejected(prefix + header, "header of|another network")


def test_other_networks_are_rejected(tmp_path):
    save_packed(quantized(original("plain"), ("codebook",)), tmp_path / "net")
    wider = plain()
    wider[0], wider[3] = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 24, 3, padding=1)
    longer = nn.Sequential(*plain(), nn.Linear(4, 4))
    for other in (Residual(), depthwise(), wider, longer, nn.Identity()):
        with pytest.raises(InputDataError, match="another network"):
            load_packed(tmp_path / "net", other)


def test_what_cannot_be_stored_leaves_the_old_file(tmp_path):
    path = tmp_path / "net"
    network = quantized(original("plain"), ("codebook",))
    save_packed(network, path)
    before = path.read_bytes()
    with torch.no_grad():
        network[3].bias[0] = float("nan")
    with pytest.raises(InputDataError, match=r"3\.bias"):
        save_packed(network, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["net"]
    with pytest.raises(RunFolderError, match="Cannot write"):
        save_packed(quantized(original("plain"), ("codebook",)), path / "inside_a_file")
