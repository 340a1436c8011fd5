"""Exported files compute what the network computes, for any number of images."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.export.onnx_file import ExportError, export_onnx
from amc_compress.learners.export.runtime import open_session, run_session, time_onnx
from amc_compress.models import make_model


@pytest.fixture(scope="module")
def network() -> nn.Module:
    """A digits network whose batch norms have statistics unlike the initial ones."""
    torch.manual_seed(0)
    model = make_model("digitsnet", n_classes=10, in_channels=1)
    model.train()
    for _ in range(3):
        model(3.0 * torch.randn(16, 1, 8, 8) + 1.0)
    return model.eval()


@pytest.fixture(scope="module")
def exported(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "net.onnx"
    images = torch.randn(70, 1, 8, 8)
    result = export_onnx(network, torch.zeros(1, 1, 8, 8), path, images=images)
    assert result.max_difference < 1e-4
    assert result.agreement == 1.0
    assert result.n_images == 70
    return path


@pytest.mark.parametrize("batch", [1, 3, 64])
def test_onnx_runtime_equals_torch_for_any_batch(
    network: nn.Module, exported: Path, batch: int
) -> None:
    images = torch.randn(batch, 1, 8, 8)
    with torch.no_grad():
        expected = network(images).numpy()
    np.testing.assert_allclose(run_session(open_session(exported), images), expected, atol=1e-4)


def test_only_the_file_itself_is_left(exported: Path) -> None:
    assert [p.name for p in exported.parent.iterdir()] == ["net.onnx"]


@pytest.mark.slow
def test_training_mode_is_restored(network: nn.Module, tmp_path: Path) -> None:
    network.train()
    export_onnx(network, torch.zeros(1, 1, 8, 8), tmp_path / "net.onnx")
    assert network.training
    network.eval()


class Undecided(nn.Module):
    """Computes one thing while it is exported and another one afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        scale = 2.0 if torch.compiler.is_exporting() else 1.0
        return scale * x.flatten(1)


def test_file_that_computes_something_else_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="differs from torch"):
        export_onnx(
            Undecided(), torch.zeros(1, 1, 2, 2), tmp_path / "x.onnx", images=torch.ones(4, 1, 2, 2)
        )
    assert list(tmp_path.iterdir()) == []


class Unexportable(nn.Module):
    """Its result depends on a value in a way that no static graph holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) if x.sum().item() > 0 else -x.flatten(1)


def test_network_that_cannot_be_exported_gives_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="cannot be exported") as caught:
        export_onnx(Unexportable(), torch.zeros(1, 1, 2, 2), tmp_path / "x.onnx")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_damaged_file_is_rejected(tmp_path: Path) -> None:
    (tmp_path / "x.onnx").write_bytes(b"not a network")
    with pytest.raises(ExportError, match="cannot read"):
        open_session(tmp_path / "x.onnx")


def test_timing_reports_every_file_and_batch_size(exported: Path) -> None:
    times = time_onnx({"a": exported, "b": exported}, (1, 8, 8), batch_sizes=(1, 8), seconds=0.2)
    assert set(times) == {"a", "b"}
    for by_batch in times.values():
        assert set(by_batch) == {"1", "8"}
        assert all(value > 0 for value in by_batch.values())
