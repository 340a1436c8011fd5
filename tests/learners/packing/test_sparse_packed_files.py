"""Packed files of sparse networks: nothing is lost, nothing is stored twice, sizes as predicted."""

from __future__ import annotations

import base64
import copy
import json
import math
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.networks.sparse_networks import layer_names, sparsified
from support.packed_reader import reader
from support.selection import examples
from torch import nn

from amc_compress.learners.layers.masked import masked_layers, sparse_layer
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.layers.structure import fold_norms, quantize_layers
from amc_compress.learners.packing.format import PREFIX
from amc_compress.learners.packing.packed_file import (
    load_packed,
    packed_bytes,
    read_packed_plan,
    save_packed,
)
from amc_compress.learners.packing.sparse import decode, encode
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.testing.networks import EXAMPLE, Residual, depthwise, make_data, plain
from amc_compress.learners.tracing.traced_model import trace
from amc_env import CompressionPlan
from amc_env.errors import InputDataError

NETWORKS = {"plain": plain, "residual": Residual, "depthwise": depthwise}
IMAGES = make_data(8, 4)[0][0]

# Two linear layers, the first in 3 bits, as they were stored before there were sparse networks.
VERSION_1 = (
    "QU1DUEFDSwoBAAAA9AAAACcAAAAAAAAAB3hF9HjabY/dboMwDIXfxddRRWHrRV4FIZRS01kNhuVnE6149zoJXEzaTeQc"
    "+/M5foEPLg4hOgT9gh90nmYGfVZgzSq/pFbp+UW6f4VUPYhvoCEyjbObQMGVgsw1UsThgakW3K/ThMHRAFocUMHdGY7W"
    "OAqr0AHZzw4Opvf0lAT150WM0ThGsRiN9QJynK45ieB2U0C8xFB+ydv44rCl1g05UCAUre1EWKzhfIIu+fs966mSZslw"
    "nNi2x42qUW2tmq5TbdmvYPwA0TqRoDrtq76jEbMnusz6wVg8Js+ZldbcLzOxrKyyKHj9x2lfrOp/zbbtDRhOh/LVTAAA"
    "AIA/AAAAwAAAgD4AAIA/AAAAQAAAAAAAAIDAAAAAAAAAAD8="
)


def original(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NETWORKS[name]().eval()


def quantized(network: nn.Module, kind: str) -> nn.Module:
    """Folds and quantizes the layers of a sparse network, with bits from 2 to 8."""
    network = copy.deepcopy(network)
    fold_norms(network)
    made = {}
    for index, name in enumerate(layer_names(network)):
        layer, bits = network.get_submodule(name), 2 + index % 7
        weight = layer.weight.detach()
        if kind == "codebook":
            quantizer = CodebookQuantizer.fit(weight, bits)
        elif kind == "buckets":
            quantizer = CodebookQuantizer.fit(weight, bits, granularity="split", bucket_size=50)
        else:
            scale = weight.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
            quantizer = UniformQuantizer(bits, scale, granularity="channel")
        # One layer in three stays float, with a mask or without.
        made[name] = (None if index % 3 == 2 else quantizer, None)
    return quantize_layers(network, made)


# ---------------------------------------------------------------------- the coder


@st.composite
def arrays(draw):
    shape = draw(st.sampled_from([(0,), (1,), (7,), (8,), (9, 1), (70, 10), (20, 8, 3, 3)]))
    count = math.prod(shape)
    rng = np.random.default_rng(draw(st.integers(0, 999)))
    density = draw(st.sampled_from([0.0, 0.001, 0.02, 0.3, 0.5, 0.97, 0.999, 1.0]))
    mask = rng.random(shape) < density
    if draw(st.booleans()) and len(shape) == 4:  # 2:4 along the inputs
        mask = rng.random((20, 3, 3, 2, 4)).argsort(axis=-1) < 2
        mask = np.moveaxis(mask.reshape(20, 3, 3, 8), -1, 1)
    bits = draw(st.sampled_from([None, *range(1, 9)]))
    if bits is not None:
        return rng.integers(0, 2**bits, shape).astype(np.uint8), mask, bits, str(bits)
    kind = draw(st.sampled_from(["f2", "f4", "f8"]))
    values = rng.standard_normal(count) * 10.0 ** rng.integers(-3, 3, count)
    return values.astype(kind).reshape(shape), mask, None, kind


@examples(150)
@given(arrays())
def test_numbers_and_places_survive_in_both_readers(problem):
    values, mask, bits, kind = problem
    data = encode(values, mask, bits)
    expected = np.where(mask, values, 0)
    for found, places in (
        decode(data, values.shape, kind, bits),
        reader()["decode"](data, kind, values.shape),
    ):
        assert np.array_equal(places, mask)
        assert np.array_equal(found, expected)
        # Bit for bit, zeros with a sign included.
        assert found[mask].tobytes() == values[mask].astype(found.dtype).tobytes()


@pytest.mark.parametrize("density", [0.02, 0.05, 0.1, 0.25, 0.4, 0.5, 0.6, 0.75, 0.9, 0.98])
def test_places_take_little_more_than_their_entropy(density):
    rng = np.random.default_rng(0)
    n = 100_000
    mask = rng.permutation(n) < round(density * n)
    values = np.zeros(n, dtype=np.uint8)
    of_places = len(encode(values, mask, 1)) - len(encode(values[mask], None, 1)) + 1
    least = n / 8 * -(density * math.log2(density) + (1 - density) * math.log2(1 - density))
    assert least < of_places < 1.035 * least + 60


def test_regular_zeros_are_stored_in_fewer_bits_than_irregular_ones():
    rng = np.random.default_rng(0)
    n = 40_000
    values = np.zeros(n, dtype=np.uint8)
    irregular = rng.permutation(n) < n // 2
    regular = (rng.random((n // 4, 4)).argsort(axis=1) < 2).reshape(-1)
    blocks = np.repeat(np.repeat(rng.random((50, 50)) < 0.5, 4, axis=0), 4, axis=1).reshape(-1)
    sizes = [len(encode(values[: m.size], m, 1)) for m in (irregular, regular, blocks)]
    assert sizes[1] < 0.68 * sizes[0]  # log2(6) / 4 bits per weight in place of 1
    conv = np.moveaxis(regular[:36_864].reshape(64, 3, 3, 64), -1, 1)
    of_conv = len(encode(values[: conv.size].reshape(conv.shape), conv, 1))
    assert of_conv < 0.68 * sizes[0] * conv.size / n
    assert sizes[2] < 0.3 * sizes[0]


def test_codes_take_their_entropy():
    rng = np.random.default_rng(0)
    codes = rng.choice(4, 40_000, p=(0.05, 0.8, 0.1, 0.05)).astype(np.uint8)
    least = 40_000 / 8 * -sum(p * math.log2(p) for p in (0.05, 0.8, 0.1, 0.05))
    assert least < len(encode(codes, None, 2)) < 1.05 * least


# ---------------------------------------------------------------------- networks


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("kind", ["float", "codebook", "uniform", "buckets"])
@pytest.mark.parametrize("density", [0.02, 0.3, 0.95])
def test_outputs_and_masks_survive(name, kind, density, tmp_path):
    names = layer_names(original(name))
    # The last layer is dense in a sparse network; the first has a mask that hides nothing.
    network = sparsified(original(name), {**dict.fromkeys(names[:-1], density), names[0]: 1.0})
    if kind != "float":
        network = quantized(network, kind)
    size = save_packed(network, tmp_path / "net")
    assert size == (tmp_path / "net").stat().st_size
    loaded = load_packed(tmp_path / "net", original(name, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    masks = {n: layer.weight_mask for n, layer in masked_layers(loaded).items()}
    assert list(masks) == names[:-1]
    for layer_name, layer in masked_layers(network).items():
        assert torch.equal(masks[layer_name], layer.weight_mask)
        hidden = loaded.get_submodule(layer_name).weight[~layer.weight_mask]
        assert not hidden.any()
    assert list(quantized_layers(loaded)) == list(quantized_layers(network))
    assert packed_bytes(loaded) == packed_bytes(network)


@pytest.mark.parametrize("kind", ["float", "codebook", "uniform", "buckets"])
def test_the_reader_in_the_docs_reads_sparse_networks(kind, tmp_path):
    names = layer_names(original("residual"))
    network = sparsified(original("residual"), dict.fromkeys(names[:-1], 0.3))
    network = network if kind == "float" else quantized(network, kind)
    save_packed(network, tmp_path / "net")
    scope = reader()
    header, found, masks = scope["read"](tmp_path / "net")
    for name in names:
        layer = network.get_submodule(name)
        expected = layer.weight
        if name in masked_layers(network):
            assert np.array_equal(masks[f"{name}.weight"], layer.weight_mask.numpy())
            expected = layer.masked_weight()
        values = found[f"{name}.weight"]
        if getattr(layer, "weight_quantizer", None) is not None:
            expected = layer.quantized_weight()
            values = scope["weights"](header, found, masks, name)
        assert np.array_equal(values, expected.detach().numpy()), name


def test_sparse_networks_that_were_cut_come_back(tmp_path):
    base = original("residual")
    traced = trace(base, EXAMPLE)
    kept = {g.name: torch.arange(0, g.size, 2) for g in traced.graph.groups}
    network = quantized(sparsified(traced.slice(kept), 0.4), "codebook")
    plan = CompressionPlan({"x:density": 0.4})
    save_packed(network, tmp_path / "net", kept=kept, example_input=EXAMPLE, plan=plan)
    loaded = load_packed(tmp_path / "net", original("residual", seed=1))
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), network(IMAGES))
    assert read_packed_plan(tmp_path / "net") == plan


def test_a_layer_used_twice_is_masked_in_both_places(tmp_path):
    def network():
        layer = nn.Conv2d(3, 3, 3, padding=1)
        return nn.Sequential(layer, nn.ReLU(), layer).eval()

    net = network()
    net[0] = net[2] = sparse_layer(net[0], torch.rand(3, 3, 3, 3) < 0.5)
    save_packed(net, tmp_path / "net")
    loaded = load_packed(tmp_path / "net", network())
    assert loaded[0] is loaded[2]
    with torch.no_grad():
        assert torch.equal(loaded(IMAGES), net(IMAGES))


def test_a_single_layer_is_a_network_too(tmp_path):
    layer = sparse_layer(nn.Linear(6, 4), torch.rand(4, 6) < 0.5)
    save_packed(layer, tmp_path / "net")
    loaded = load_packed(tmp_path / "net", nn.Linear(6, 4))
    x = torch.randn(3, 6)
    assert torch.equal(loaded(x), layer.eval()(x))


def test_training_goes_on_behind_the_same_mask(tmp_path):
    save_packed(sparsified(original("plain"), 0.2), tmp_path / "net")
    loaded = load_packed(tmp_path / "net", original("plain"))
    before = {n: m.masked_weight().detach().clone() for n, m in masked_layers(loaded).items()}
    optimizer = torch.optim.SGD(loaded.parameters(), lr=0.1)
    loaded.train()(IMAGES).square().sum().backward()
    optimizer.step()
    for name, layer in masked_layers(loaded).items():
        after = layer.masked_weight()
        assert not torch.equal(after, before[name])
        assert not after[~layer.weight_mask].any()


def test_zeros_without_a_mask_are_numbers_like_others():
    network = original("plain")
    with torch.no_grad():
        for name in layer_names(network):
            network.get_submodule(name).weight *= torch.rand(1) < 0.5
    assert len(packed_bytes(network)) == len(packed_bytes(original("plain")))


def test_what_is_hidden_is_not_stored():
    network = sparsified(original("plain"), 0.3)
    before = packed_bytes(network)
    with torch.no_grad():
        for layer in masked_layers(network).values():
            layer.weight[~layer.weight_mask] = 77.0
    assert packed_bytes(network) == before
    assert len(before) < 0.5 * len(packed_bytes(original("plain")))


# ---------------------------------------------------------------------- other files


def test_files_of_version_1_are_read(tmp_path):
    (tmp_path / "net").write_bytes(base64.b64decode(VERSION_1))
    blank = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 2))
    network = load_packed(tmp_path / "net", blank)
    weight = torch.tensor([[0.5, -0.25, 0.0], [0.75, 0.25, -0.75]])
    assert torch.equal(network[0].quantized_weight(), weight)
    assert torch.equal(network(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[1.0, 0.5]]))
    assert read_packed_plan(tmp_path / "net") == CompressionPlan({"0:weight_bits": 3.0})
    header, arrays, masks = reader()["read"](tmp_path / "net")
    assert np.array_equal(reader()["weights"](header, arrays, masks, "0"), weight.numpy())


def test_damaged_files_are_rejected(tmp_path):
    data = packed_bytes(quantized(sparsified(original("plain"), 0.2), "codebook"))
    path = tmp_path / "net"
    for at in (30, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:at] + bytes([data[at] ^ 16]) + data[at + 1 :])
        with pytest.raises(InputDataError, match="damaged"):
            load_packed(path, original("plain"))
    for end in (10, 40, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(InputDataError, match="cut short"):
            load_packed(path, original("plain"))


def rewritten(data: bytes, change) -> bytes:
    """The file with another header and payload, its check sum right again."""
    magic, version, n_header, _, _ = PREFIX.unpack_from(data)
    header = json.loads(zlib.decompress(data[PREFIX.size : PREFIX.size + n_header]))
    header, payload = change(header, data[PREFIX.size + n_header :])
    text = zlib.compress(json.dumps(header).encode())
    check = zlib.crc32(payload, zlib.crc32(text))
    return PREFIX.pack(magic, version, len(text), len(payload), check) + text + payload


def test_files_that_other_programs_got_wrong_are_rejected(tmp_path):
    base = nn.Sequential(nn.Linear(30, 20, bias=False))
    data = packed_bytes(sparsified(base, 0.1))

    def rejected(change, message: str) -> None:
        (tmp_path / "net").write_bytes(rewritten(data, change))
        with pytest.raises(InputDataError, match=message):
            load_packed(tmp_path / "net", base)

    def first_bytes(new: bytes):
        return lambda header, payload: (header, new + payload[len(new) :])

    def resized(shape):
        def change(header, payload):
            header["tensors"]["0"][0][2] = shape
            return header, payload

        return change

    def shorter(header, payload):
        header["tensors"]["0"][0][3] -= 1
        return header, payload[:-1]

    def longer(header, payload):
        header["tensors"]["0"][0][3] += 1
        return header, payload + b"\0"

    def unmasked(header, payload):
        del header["structure"]["masked"]
        return header, payload

    def unknown(header, payload):
        header["tensors"]["0"][0][1] = "s9"
        return header, payload

    rejected(first_bytes(b"\5"), "unknown way 5")
    rejected(first_bytes(b"\1"), "mask of 600|not Deflate|cut short")
    rejected(first_bytes(b"\2\xff\xff"), "not Deflate")
    rejected(resized([1, 2]), "longer than 2 bytes")
    rejected(resized([20, 3]), "non-zero is at|longer than")
    rejected(shorter, "cut short")
    rejected(longer, "1 bytes are left")
    rejected(unmasked, "has a mask there and none here")
    rejected(unknown, "unknown kind 's9'")
    (tmp_path / "net").write_bytes(data[:8] + struct.pack("<I", 3) + data[12:])
    with pytest.raises(InputDataError, match=r"version 1 or 2, but .* version 3"):
        load_packed(tmp_path / "net", base)


def test_a_file_whose_mask_is_missing_is_rejected(tmp_path):
    base = nn.Sequential(nn.Linear(30, 20, bias=False))

    def masked(header, payload):
        header["structure"]["masked"] = {"0": False}
        return header, payload

    (tmp_path / "net").write_bytes(rewritten(packed_bytes(base), masked))
    with pytest.raises(InputDataError, match=r"0\.weight has no mask there"):
        load_packed(tmp_path / "net", base)


def test_numbers_that_are_not_finite_are_rejected_unless_hidden(tmp_path):
    network = sparsified(original("plain"), 0.2)
    layer = network[0]
    with torch.no_grad():
        layer.weight[layer.weight_mask] = float("inf")
    with pytest.raises(InputDataError, match=r"0\.weight"):
        save_packed(network, tmp_path / "net")
    assert not (tmp_path / "net").exists()
