"""Exported integers are the network's own, ONNX Runtime computes with them, or export fails."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from support.quantized_exports import CALIBRATION, IMAGES, export, quantized
from support.selection import quick
from torch import Tensor, nn

from amc_compress.learners import UniformQuantization
from amc_compress.learners.export.integers.onnx_quantized import onnx_accuracy, post_training_int8
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.export.runtime import open_session, run_session
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.quantization.codebook.quantizer import CodebookQuantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.testing.networks import EXAMPLE, NETWORKS, make_data, make_model


def stored_layers(path: Path) -> list[tuple[np.ndarray, np.ndarray, int, float, int]]:
    """Per layer of the file: integers, scales, their axis, and scale and zero point of the input.

    Weights are returned with their outputs on axis 0.
    """
    graph = onnx.load(path).graph
    constants = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    made = {output: node for node in graph.node for output in node.output}
    found = []
    for node in graph.node:
        if node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        inputs, weights = made[node.input[0]], made[node.input[1]]
        assert inputs.op_type == weights.op_type == "DequantizeLinear"
        integers, scales = (constants[name] for name in weights.input[:2])
        axis = weights.attribute[0].i
        assert integers.dtype == np.int8
        assert len(weights.input) < 3 or not constants[weights.input[2]].any()
        transposed = {a.name: a.i for a in node.attribute}.get("transB", 0) == 0
        if node.op_type != "Conv" and transposed:
            integers, axis = integers.T, 1 - axis
        zero = constants[inputs.input[2]]
        assert zero.dtype == np.uint8
        found.append((integers, scales, axis, float(constants[inputs.input[1]]), int(zero)))
    return found


@pytest.mark.parametrize("bits", quick([8, 5, 2], 8, 2))
@pytest.mark.parametrize("name", quick(NETWORKS, "depthwise"))
def test_the_file_holds_the_networks_own_integers(name: str, bits: int, tmp_path: Path) -> None:
    network = quantized(make_model(name), bits)
    result = export(network, tmp_path / "net.onnx")
    layers, stored = quantized_layers(network), stored_layers(tmp_path / "net.onnx")
    assert result.n_int8_layers == len(layers) == len(stored)
    assert result.n_float_layers == 0
    for layer, (integers, scales, axis, input_scale, input_zero) in zip(
        layers.values(), stored, strict=True
    ):
        weights, inputs = layer.weight_quantizer, layer.input_quantizer
        assert isinstance(weights, UniformQuantizer)
        assert isinstance(inputs, UniformQuantizer)
        codes = weights.encode(layer.weight).numpy().astype(int)
        added = integers[:, codes.shape[1] :]  # black channels, at the images only
        assert added.shape[1] == (1 if layer.weight.shape[1] == 3 else 0)
        assert not added.any()
        np.testing.assert_array_equal(integers[:, : codes.shape[1]], codes - (2 ** (bits - 1) - 1))
        np.testing.assert_array_equal(scales, weights.scale.numpy())
        assert axis == 0
        assert len(scales) == layer.weight.shape[0]
        assert input_scale == inputs.scale.item()
        assert input_zero == inputs.zero_point.item()
        assert len(np.unique(integers)) <= 2**bits - 1


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_the_file_predicts_what_the_network_predicts(name: str, tmp_path: Path) -> None:
    network = quantized(make_model(name))
    result = export(network, tmp_path / "net.onnx")
    logits = run_session(open_session(tmp_path / "net.onnx"), IMAGES)
    with torch.no_grad():
        expected = network(IMAGES).numpy()
    assert result.agreement == np.mean(logits.argmax(1) == expected.argmax(1)) >= 0.98
    assert result.max_difference == pytest.approx(np.abs(logits - expected).max())
    assert result.max_difference < 0.05 * np.abs(expected).max()
    assert result.n_images == len(IMAGES)
    assert result.bytes == (tmp_path / "net.onnx").stat().st_size
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"]


@pytest.mark.parametrize("batch", quick([1, 3], 3))
def test_the_batch_axis_is_free(batch: int, tmp_path: Path) -> None:
    export(quantized(make_model("residual")), tmp_path / "net.onnx")
    assert run_session(open_session(tmp_path / "net.onnx"), IMAGES[:batch]).shape == (batch, 4)


@pytest.mark.parametrize("name", quick(NETWORKS, "residual"))
def test_post_training_runs_every_layer_in_integers(name: str, tmp_path: Path) -> None:
    model = make_model(name)
    result = post_training_int8(
        model, EXAMPLE, tmp_path / "net.onnx", calibration=CALIBRATION, images=IMAGES
    )
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert (result.n_int8_layers, result.n_float_layers) == (len(layers), 0)
    assert result.agreement >= 0.97
    for integers, scales, axis, *_ in stored_layers(tmp_path / "net.onnx"):
        assert axis == 0
        assert len(scales) == len(integers)
    loader = make_data(200, 3)
    right = sum(int((model.eval()(images).argmax(1) == labels).sum()) for images, labels in loader)
    assert onnx_accuracy(result.path, loader) == pytest.approx(right / 200, abs=0.02)


@pytest.mark.slow
def test_networks_of_the_learner_can_be_exported(tmp_path: Path) -> None:
    learner = UniformQuantization(
        make_model("depthwise"), EXAMPLE, make_data(96, 2), make_data(200, 3), weight_bits=(4, 8)
    )
    network = learner.compress(learner.fixed_plan(4))
    result = export(network, tmp_path / "net.onnx")
    assert result.n_float_layers == 0
    assert result.agreement >= 0.95


class Shared(nn.Module):
    """Two layers and a sum read one tensor; the layers in different steps."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.left(x) + self.right(x) + x)
        out: Tensor = self.head(x.mean((2, 3)))
        return out


@pytest.mark.slow
def test_readers_of_one_tensor_keep_their_own_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = quantized(Shared())
    finer = network.get_submodule("right.input_quantizer")
    assert isinstance(finer, UniformQuantizer)
    finer.scale.mul_(0.5)
    result = export(network, tmp_path / "net.onnx")
    wanted = [layer.input_quantizer.scale.item() for layer in quantized_layers(network).values()]
    assert sorted(row[3] for row in stored_layers(result.path)) == pytest.approx(
        sorted(wanted), rel=0
    )
    assert result.n_int8_layers == 4
    assert result.max_difference < 0.05


@pytest.mark.slow
def test_shortcuts_of_their_own_are_not_cut_off(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = quantized(Shared(), clip=0.5)
    shared = export(network, tmp_path / "shared.onnx")
    own = export(network, tmp_path / "own.onnx", shortcuts="own")
    assert own.n_int8_layers == shared.n_int8_layers == 4
    assert own.max_difference < shared.max_difference / 3


def test_bias_of_a_dead_channel_survives(tmp_path: Path) -> None:
    model = make_model("plain")
    first = model[0]
    assert isinstance(first, nn.Conv2d)
    with torch.no_grad():
        first.weight[3] = 1e-13
        first.weight[4] = 0.0
        first.bias[3], first.bias[4] = 1.5, -0.5  # type: ignore[index]
    result = export(quantized(model), tmp_path / "net.onnx")
    assert result.n_int8_layers == 4
    assert result.max_difference < 0.5
    assert result.agreement >= 0.98


class Tokens(nn.Module):
    """Linear layers on three axes, which ONNX computes by plain matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Conv2d(3, 8, 4, stride=4), nn.Linear(8, 12)
        self.head = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        out: Tensor = self.head(torch.relu(self.mix(tokens)).mean(1))
        return out


@pytest.mark.slow
def test_linear_layers_on_tokens_keep_channel_scales(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = quantized(Tokens())
    result = export(network, tmp_path / "net.onnx")
    wanted = {n: m.weight_quantizer.scale.numpy() for n, m in quantized_layers(network).items()}
    for (name, scale), (_, stored, axis, *_) in zip(
        wanted.items(), stored_layers(result.path), strict=True
    ):
        np.testing.assert_array_equal(stored, scale, err_msg=name)
        assert axis == 0
    assert result.n_int8_layers == 3
    assert result.max_difference < 0.05


@pytest.mark.parametrize(
    ("bits", "symmetric"),
    [
        (3, False),
        *(pytest.param(*x, marks=pytest.mark.slow) for x in ((4, True), (7, False))),
    ],
)
def test_low_bit_affine_weights_are_exact(bits: int, symmetric: bool, tmp_path: Path) -> None:
    network = quantized(make_model("plain"), bits, symmetric=symmetric, granularity="tensor")
    result = export(network, tmp_path / "net.onnx")
    for layer, (integers, scales, *_) in zip(
        quantized_layers(network).values(), stored_layers(result.path), strict=True
    ):
        shape = (-1, *(1,) * (integers.ndim - 1))
        own = integers[:, : layer.weight.shape[1]]
        np.testing.assert_array_equal(
            own * scales.reshape(shape), layer.quantized_weight().detach().numpy()
        )


def test_weight_only_files_are_smaller_and_exact(tmp_path: Path) -> None:
    model = make_model("plain")
    sizes = {"float": export_onnx(model, EXAMPLE, tmp_path / "float.onnx").path.stat().st_size}
    for bits in (4, 8):
        network = quantized(model, bits, None)
        result = export(network, tmp_path / f"w{bits}.onnx")
        assert (result.n_int8_layers, result.n_float_layers) == (0, 4)
        assert result.agreement == 1.0
        assert result.max_difference < 1e-4
        sizes[str(bits)] = result.bytes
        loaded = onnx.load(result.path)
        stored = [t for t in loaded.graph.initializer if t.name.endswith(".integers")]
        kind = onnx.TensorProto.INT4 if bits == 4 else onnx.TensorProto.INT8
        assert {t.data_type for t in stored} == {kind}
        for layer, tensor in zip(quantized_layers(network).values(), stored, strict=True):
            codes = layer.weight_quantizer.encode(layer.weight).numpy().astype(int)
            np.testing.assert_array_equal(
                numpy_helper.to_array(tensor).astype(int), codes - (2 ** (bits - 1) - 1)
            )
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert sizes["float"] - sizes["8"] > 2.5 * weights
    assert sizes["8"] - sizes["4"] > 0.3 * weights
    big = export(quantized(model, 4, None), tmp_path / "big.onnx", weight_only="float")
    assert big.bytes > 3 * weights
    assert not any(n.op_type == "DequantizeLinear" for n in onnx.load(big.path).graph.node)


@pytest.mark.slow
@pytest.mark.parametrize("activation_bits", [8, None])
def test_buckets_have_no_integer_arithmetic(activation_bits: int | None, tmp_path: Path) -> None:
    network = quantized(make_model("plain"), 4, activation_bits, granularity="split")
    result = export(network, tmp_path / "net.onnx")
    assert (result.n_int8_layers, result.n_float_layers) == (0, 4)
    constants = [numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer]
    first = quantized_layers(network)["0"].quantized_weight().detach().numpy()
    assert any(c.shape == first.shape and np.array_equal(c, first) for c in constants)


@pytest.mark.slow
def test_codebooks_are_written_as_the_numbers_they_stand_for(tmp_path: Path) -> None:
    network = quantized(make_model("residual"))
    layer = quantized_layers(network)["conv1"]
    layer.weight_quantizer = CodebookQuantizer.fit(layer.weight.detach(), 3)
    result = export(network, tmp_path / "net.onnx")
    assert (result.n_int8_layers, result.n_float_layers) == (4, 1)
    constants = [numpy_helper.to_array(t) for t in onnx.load(result.path).graph.initializer]
    wanted = layer.quantized_weight().detach().numpy()
    assert any(c.shape == wanted.shape and np.array_equal(c, wanted) for c in constants)
    assert result.agreement >= 0.98


@pytest.mark.slow
def test_float_layers_stay_float(tmp_path: Path) -> None:
    network = quantized(make_model("residual"))
    layer = quantized_layers(network)["conv1"]
    layer.weight_quantizer = layer.input_quantizer = None
    result = export(network, tmp_path / "net.onnx")
    assert (result.n_int8_layers, result.n_float_layers) == (4, 1)
    assert result.agreement >= 0.98
