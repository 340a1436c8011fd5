"""What an exported file looks like from outside: batch, types, names, metadata; and no paths."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from support.selection import quick
from torch import Tensor, nn

from amc_compress.cli import run
from amc_compress.data import Normalisation
from amc_compress.learners.export.integers.onnx_quantized import (
    UnsupportedPrecisionError,
    post_training_int8,
)
from amc_compress.learners.export.onnx_file import ExportError, export_onnx
from amc_compress.learners.export.onnx_options import OnnxOptions, file_metadata
from amc_compress.learners.export.runtime import open_session, run_session
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model

NORMALISATION = Normalisation(255.0, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3))
IMAGES = NORMALISATION(
    torch.randint(0, 256, (37, 3, 8, 8), generator=torch.Generator().manual_seed(0))
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return make_model("plain").eval()


class Viewed(nn.Module):
    """Says how many images there are in a way of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 5)

    def count(self, x: Tensor) -> int:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        x = F.adaptive_avg_pool2d(self.conv(x).relu(), 4)
        return self.head(x.view(self.count(x), -1))


class Shape(Viewed):
    def count(self, x: Tensor) -> int:
        return x.shape[0]


class Length(Viewed):
    def count(self, x: Tensor) -> int:
        return len(x)


class Number(Viewed):
    def count(self, x: Tensor) -> int:
        return int(x.shape[0])


class Branch(Viewed):
    def count(self, x: Tensor) -> int:
        return -1 if x.shape[0] > 30 else x.shape[0]


class Loop(Shape):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([super(Loop, self).forward(image[None])[0] for image in x])


def input_of(path: Path) -> tuple[str, int, list[int | str]]:
    source = onnx.load(path).graph.input[0]
    tensor = source.type.tensor_type
    return source.name, tensor.elem_type, [d.dim_param or d.dim_value for d in tensor.shape.dim]


@pytest.mark.parametrize("form", quick([Shape, Length, Number], Number))
def test_the_batch_is_free_however_a_forward_counts_its_images(form, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = form().eval()
    path = export_onnx(model, EXAMPLE, tmp_path / "net.onnx", images=IMAGES).path
    assert input_of(path)[2] == ["batch", 3, 8, 8]
    assert onnx.load(path).graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    for count in (1, 5):
        with torch.no_grad():
            expected = model(IMAGES[:count])
        got = run_session(open_session(path), IMAGES[:count])
        np.testing.assert_allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("form", "line"),
    [(Branch, "return -1 if"), pytest.param(Loop, "for image in x", marks=pytest.mark.slow)],
)
def test_a_batch_that_cannot_be_free_names_the_line_to_change(form, line, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = form().eval()
    with pytest.raises(ExportError, match=rf"test_onnx_options\.py, line \d+ \(.*{line}.*--batch"):
        export_onnx(model, EXAMPLE, tmp_path / "net.onnx", images=IMAGES)
    assert not list(tmp_path.iterdir())
    options = OnnxOptions(batch=4)
    result = export_onnx(model, EXAMPLE, tmp_path / "net.onnx", images=IMAGES, options=options)
    assert result.max_difference < 1e-4
    assert input_of(result.path)[2] == [4, 3, 8, 8]


def test_options_are_what_the_file_has(network: nn.Module, tmp_path: Path) -> None:
    metadata = file_metadata(("cat", 'dog "x"'), NORMALISATION, (3, 8, 8))
    options = OnnxOptions(
        opset=19, batch=3, input_name="pixels", preprocessing=NORMALISATION, metadata=metadata
    )
    path = tmp_path / "net.onnx"
    result = export_onnx(network, EXAMPLE, path, images=IMAGES, options=options)
    assert result.max_difference < 1e-4
    assert input_of(path) == ("pixels", onnx.TensorProto.UINT8, [3, 3, 8, 8])
    model = onnx.load(path)
    assert next(o.version for o in model.opset_import if not o.domain) == 19
    found = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(found["classes"]) == ["cat", 'dog "x"']
    assert json.loads(found["mean"]) == [0.4, 0.5, 0.6]
    assert json.loads(found["std"]) == [0.2, 0.25, 0.3]
    assert found["input"] == "uint8 pixels"
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    with torch.no_grad():
        expected = network(NORMALISATION(pixels))
    np.testing.assert_allclose(run_session(open_session(path), pixels), expected, atol=1e-4)


@pytest.mark.slow
def test_float16_is_smaller_and_nearly_equal(network: nn.Module, tmp_path: Path) -> None:
    whole = export_onnx(network, EXAMPLE, tmp_path / "net.onnx", images=IMAGES)
    half = export_onnx(
        network, EXAMPLE, tmp_path / "half.onnx", images=IMAGES, options=OnnxOptions(half=True)
    )
    types = {tensor.data_type for tensor in onnx.load(half.path).graph.initializer}
    assert onnx.TensorProto.FLOAT16 in types
    assert onnx.TensorProto.FLOAT not in types
    assert input_of(half.path)[1] == onnx.TensorProto.FLOAT
    assert whole.max_difference < half.max_difference < 0.05
    assert all(p.dtype == torch.float32 for p in network.parameters())


def test_integer_files_take_the_same_options(network: nn.Module, tmp_path: Path) -> None:
    calibration = torch.cat([images for images, _ in make_data(64, 1)])
    options = OnnxOptions(batch=2, input_name="pixels", preprocessing=NORMALISATION)
    path = tmp_path / "net.onnx"
    result = post_training_int8(
        network, EXAMPLE, path, calibration=IMAGES, images=IMAGES, options=options
    )
    assert result.n_int8_layers > 0
    assert input_of(path) == ("pixels", onnx.TensorProto.UINT8, [2, 3, 8, 8])
    assert result.max_difference < 0.5
    with pytest.raises(UnsupportedPrecisionError, match="leave --half out"):
        post_training_int8(
            network, EXAMPLE, path, calibration=calibration, options=OnnxOptions(half=True)
        )


@pytest.mark.parametrize(
    ("bad", "message"),
    [({"input_name": "logits"}, "is the output"),
     ({"opset": 3}, "--opset from 18"), ({"batch": 0}, "--batch >= 1"), ({"input_name": "a b"},
      "--input-name"), ({"preprocessing": Normalisation(65535.0, (0.5,), (0.5,))}, "8-bit pixels")],
)  # fmt: skip
def test_options_out_of_range_are_named(bad, message) -> None:
    with pytest.raises(ValueError, match=message):
        OnnxOptions(**bad)


def test_no_file_of_a_run_tells_where_it_was_made(finished: Path) -> None:
    for name in ("model.onnx", "original.onnx"):
        content = (finished / name).read_bytes()
        assert not re.findall(rb"(?:/[\w.-]+){2,}\.py|File \"|site-packages|def forward", content)
        model = onnx.load(finished / name)
        found = {entry.key: entry.value for entry in model.metadata_props}
        assert json.loads(found["classes"]) == [str(i) for i in range(10)]


@pytest.mark.slow
def test_export_writes_a_run_anew_with_options(copy: Path, capsys) -> None:
    arguments = ["--batch", "2", "--input-name", "pixels", "--include-preprocessing", "--half"]
    assert run(["export", str(copy), *arguments, "--quiet"]) == 0
    for name in ("model.onnx", "original.onnx"):
        assert input_of(copy / name) == ("pixels", onnx.TensorProto.UINT8, [2, 1, 8, 8])
    summary = json.loads((copy / "summary.json").read_text())
    assert set(summary["compressed"]["latency_ms"]) == {"2"}
    assert summary["compressed"]["onnx_bytes"] == (copy / "model.onnx").stat().st_size
    table = capsys.readouterr().out
    assert "latency, batch 2" in table
    assert "file size, ONNX" in table
