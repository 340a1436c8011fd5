"""ONNX files of quantized networks of every kind of layer, against the networks themselves."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantized import export_quantized
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.layers.bit_layers import bit_layers
from amc_compress.learners.layers.structure import layer_weights, quantize_layers
from amc_compress.learners.quantization.calibration import observe
from amc_compress.learners.quantization.inputs import input_quantizer
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.quantization.uniform.scales import weight_scales
from amc_compress.learners.tracing.traced_model import trace


class Padded(nn.Conv2d):
    """A convolution that pads its input itself."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(F.pad(x, (0, 1, 0, 1)), self.weight, self.bias)


class Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(300, 16)
        self.along_time = nn.Conv1d(16, 32, 3, padding=1)
        self.up = nn.ConvTranspose1d(32, 16, 2, stride=2, groups=2)
        self.padded = Padded(1, 8, 2)
        self.head = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.along_time(self.table(ids).transpose(1, 2)).relu()
        x = self.padded(self.up(x).relu()[:, None]).relu()
        return self.head(x.mean((2, 3)))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(16, 64, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(16, 64, batch_first=True)
        self.head = nn.Linear(192, 5)

    def forward(self, x: Tensor) -> Tensor:
        both = torch.cat([self.lstm(x)[0], self.gru(x)[0]], 2)
        return self.head(both[:, -1])


class NormBehindActivation(nn.Module):
    """Norms that no convolution can take in."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 32, 3, padding=1)
        self.norm = nn.BatchNorm2d(32)
        self.second = nn.Conv2d(32, 64, 3, padding=1)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(self.norm(self.first(x).relu()), 2)
        return self.head(self.second(x).sigmoid().mean((2, 3)))


PICTURES = torch.linspace(-1, 2, 16 * 3 * 36).view(16, 3, 6, 6)
SEQUENCES = torch.randn(16, 6, 16, generator=torch.Generator().manual_seed(0))


def in_eight_bits(network: nn.Module, x: Tensor) -> nn.Module:
    places = bit_layers(network, trace(network, x[:2]).graph, ()).layers
    seen = observe(network, [x], list(places))
    chosen = {}
    for name, place in places.items():
        weight, _ = layer_weights(network, name)
        shared = {"symmetric": True, "granularity": "channel", "bucket_size": 256}
        shared["axis"] = place.axis
        scale, zero = weight_scales(weight, 8, "minmax", **shared)
        inputs = input_quantizer(seen.inputs[name], 8, "minmax", name) if place.has_input else None
        chosen[name] = (UniformQuantizer(8, scale, zero, **shared), inputs)
    return quantize_layers(network, chosen)


def operators(path: Path) -> Counter[str]:
    import onnx

    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.mark.parametrize(
    ("build", "x", "size"),
    [
        (Convolutions, torch.arange(16 * 10).view(16, 10) % 300, 0.5),
        pytest.param(NormBehindActivation, PICTURES, 0.5, marks=pytest.mark.slow),
        pytest.param(Recurrent, SEQUENCES, 0.4, marks=pytest.mark.slow),
    ],
)
def test_a_file_computes_what_the_quantized_network_does(build, x, size, tmp_path):
    torch.manual_seed(0)
    network = build().eval()
    plain = export_onnx(network, x[:2], tmp_path / "float.onnx")
    expected = network(x).detach()
    network = in_eight_bits(network, x)
    result = export_quantized(network, x[:2], tmp_path / "small.onnx", calibration=x)
    scale = float(expected.abs().max())
    assert 0.0 < float((network(x).detach() - expected).abs().max()) < 0.1 * scale
    assert result.max_difference < 0.02 * scale
    assert result.bytes < size * plain.path.stat().st_size
    found = operators(result.path)
    if build is Convolutions:
        # ONNX Runtime has no integer kernel for transposed convolutions.
        assert (result.n_int8_layers, result.n_float_layers) == (3, 1)
        assert found["Gather"] == 1
    elif build is NormBehindActivation:
        # Its convolutions give 8-bit numbers, though a float operation reads them.
        assert (result.n_int8_layers, result.n_float_layers) == (3, 0)
    else:
        assert result.n_float_layers == 2
        assert result.max_difference < 1e-2 * scale
