"""Sparse networks in a run: saved with their masks, loaded again, exported with their zeros."""

from __future__ import annotations

import copy

import pytest
import torch
from support.networks.sparse_networks import layer_names, sparsified
from support.selection import quick

from amc_compress.learners.export.integers.onnx_integers import weight_integers
from amc_compress.learners.export.integers.onnx_quantized import (
    export_quantized,
    post_training_int8,
)
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.layers.masked import masked_layers
from amc_compress.learners.layers.quantized import quantized_weights
from amc_compress.learners.layers.structure import fold_norms, quantize_layers, rebuild
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.models import load_weights, make_model
from amc_compress.runs.networks import read_shape, save_network

IMAGES = torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def sparse():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = make_model("lenet", in_channels=1, image_size=8)
    return sparsified(network, 0.2)


def in_eight_bits(network):
    """Symmetric weights, inputs of 8 bits, masks as they were."""
    network = copy.deepcopy(network)
    fold_norms(network)
    made = {}
    for name in layer_names(network):
        scale = network.get_submodule(name).weight.detach().abs().flatten(1).amax(1) / 127
        inputs = UniformQuantizer(8, torch.tensor([0.03]), torch.tensor([110]), symmetric=False)
        made[name] = (UniformQuantizer(8, scale, granularity="channel"), inputs)
    return quantize_layers(network, made)


def stored_weights(path):
    from onnx import load, numpy_helper

    found = [numpy_helper.to_array(x) for x in load(path).graph.initializer]
    return [x for x in found if x.ndim > 1 and x.size > 1]


def test_masks_and_what_they_hide_survive_a_run_folder(sparse, tmp_path):
    path = tmp_path / "pruned.safetensors"
    save_network(sparse, path, kept={})
    shape = read_shape(path)
    assert shape.structure is not None
    again = rebuild(make_model("lenet", in_channels=1, image_size=8), shape.structure)
    load_weights(again, path)
    with torch.no_grad():
        assert torch.equal(again(IMAGES), sparse(IMAGES))
    assert list(masked_layers(again)) == list(masked_layers(sparse))
    # In later training a hidden weight can come back as what it was.
    for name, layer in masked_layers(sparse).items():
        assert torch.equal(again.get_submodule(name).weight, layer.weight)


def test_float_files_have_the_zeros_in_place(sparse, tmp_path):
    result = export_onnx(sparse, IMAGES, tmp_path / "net.onnx")
    assert result.agreement == 1.0
    expected = [m.masked_weight().detach() for m in masked_layers(sparse).values()]
    stored = stored_weights(tmp_path / "net.onnx")
    assert sum((x == 0).sum() for x in stored) == sum(int((w == 0).sum()) for w in expected)
    assert sum(x.size for x in stored) == sum(w.numel() for w in expected)
    assert masked_layers(sparse)  # the network itself keeps its masks


@pytest.mark.parametrize("way", quick(["own integers", "after training"], "own integers"))
def test_integer_files_have_the_zeros_in_place(sparse, way, tmp_path):
    if way == "own integers":
        network = in_eight_bits(sparse)
        result = export_quantized(network, IMAGES, tmp_path / "net", calibration=IMAGES)
    else:
        network = sparse
        result = post_training_int8(network, IMAGES, tmp_path / "net", calibration=IMAGES)
    assert result.n_int8_layers > 0
    assert result.agreement >= 0.9
    zeros = sum((x == 0).sum() for x in stored_weights(tmp_path / "net"))
    hidden = sum(int((~m.weight_mask).sum()) for m in masked_layers(sparse).values())
    assert zeros >= hidden


def test_integers_behind_a_mask_are_zero(sparse):
    for weight in quantized_weights(in_eight_bits(sparse)).values():
        integers, scales = weight_integers(weight)
        assert not integers[~weight.mask.numpy()].any()
        values = torch.from_numpy(integers * scales.reshape(-1, *(1,) * (integers.ndim - 1)))
        torch.testing.assert_close(values.float(), weight.used().detach())
