"""What the export of quantized networks rejects, and with which message."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.quantized_exports import CALIBRATION, export, quantized
from torch import Tensor, nn

from amc_compress.learners.export.integers.onnx_quantized import (
    UnsupportedPrecisionError,
    check_executable,
    export_quantized,
    onnx_accuracy,
    post_training_int8,
)
from amc_compress.learners.export.onnx_file import ExportError, export_onnx
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.quantization.uniform.quantizer import UniformQuantizer
from amc_compress.learners.testing.networks import EXAMPLE, make_model
from amc_env.errors import InputDataError


@pytest.mark.parametrize("bits", [3, 7])
def test_low_bit_activations_are_rejected_and_the_packed_file_offered(
    bits: int, tmp_path: Path
) -> None:
    network = quantized(make_model("plain"), 8, bits)
    with pytest.raises(
        UnsupportedPrecisionError, match=rf"{bits}-bit activations \(0, 3, 6, 8\).*save_packed"
    ):
        export(network, tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_only_the_layers_at_fault_are_named() -> None:
    network = quantized(make_model("plain"))
    layer = quantized_layers(network)["3"]
    layer.input_quantizer = UniformQuantizer(4, torch.ones(1), symmetric=False)
    with pytest.raises(UnsupportedPrecisionError, match=r"4-bit activations \(3\):"):
        check_executable(network)


def test_affine_eight_bit_weights_beyond_int8_are_rejected() -> None:
    model = make_model("plain")
    with torch.no_grad():
        model[3].weight.add_(1.0)
    network = quantized(model, symmetric=False)
    with pytest.raises(UnsupportedPrecisionError, match=r"zero points outside int8 \(.*3"):
        check_executable(network)


def test_float_and_quantized_networks_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedPrecisionError, match="use post_training_int8"):
        export(make_model("plain"), tmp_path / "net.onnx")
    with pytest.raises(UnsupportedPrecisionError, match="use export_quantized"):
        post_training_int8(
            quantized(make_model("plain")), EXAMPLE, tmp_path / "x.onnx", calibration=CALIBRATION
        )


class Unexportable(nn.Module):
    """Decides by a value, which no static graph holds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(192, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x.flatten(1) if x.sum().item() > 0 else -x.flatten(1))
        return out


def test_network_that_cannot_be_exported_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be exported") as caught:
        export(quantized(Unexportable()), tmp_path / "net.onnx")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("calibration", "message"),
    [
        (torch.zeros(0, 3, 8, 8), r"shape \(N, 3, 8, 8\), got \(0, 3, 8, 8\)"),
        (torch.zeros(4, 1, 8, 8), r"shape \(N, 3, 8, 8\), got \(4, 1, 8, 8\)"),
        (torch.full((4, 3, 8, 8), float("nan")), "finite calibration"),
    ],
)
def test_bad_calibration_images_are_rejected(
    calibration: Tensor, message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputDataError, match=message):
        export_quantized(
            quantized(make_model("plain")), EXAMPLE, tmp_path / "x.onnx", calibration=calibration
        )


@pytest.mark.parametrize("option", ["method", "weight_only", "shortcuts"])
def test_unknown_options_are_named(option: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"Unknown {option} 'nonsense'"):
        export(quantized(make_model("plain")), tmp_path / "x.onnx", **{option: "nonsense"})


def test_accuracy_of_no_images_is_rejected(tmp_path: Path) -> None:
    export_onnx(make_model("plain").eval(), EXAMPLE, tmp_path / "x.onnx")
    with pytest.raises(InputDataError, match="at least one image"):
        onnx_accuracy(tmp_path / "x.onnx", [])
