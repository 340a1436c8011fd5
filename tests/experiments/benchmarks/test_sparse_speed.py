"""The benchmark of sparse networks: it measures what it says, or says why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_compress.benchmarks.speed import sparse_speed
from amc_compress.benchmarks.speed.sparse_speed import Row, markdown, with_zeros
from amc_compress.learners.layers.masked import masked_layers


@pytest.mark.parametrize(("zeros", "pattern", "density"), sparse_speed.ZEROS)
def test_networks_have_the_zeros_they_are_measured_with(zeros, pattern, density):
    network = with_zeros(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Linear(8, 40)), pattern, density)
    layers = masked_layers(network)
    # Three inputs are no multiple of four.
    assert list(layers) == (["1"] if pattern == "2:4" else ["0", "1"])
    for layer in layers.values():
        assert layer.density() == pytest.approx(density, abs=0.01)
    if pattern == "2:4":
        groups = layers["1"].weight_mask.reshape(-1, 4).sum(1)
        assert bool((groups == 2).all())
    else:
        assert f"{1 - density:.0%}" == zeros


def test_the_linear_layer_is_measured_dense_and_sparse():
    rows = sparse_speed.csr_rows(seconds=0.0, batch_sizes=(2,))
    assert [row.zeros for row in rows] == ["dense", *(zeros for zeros, _, _ in sparse_speed.ZEROS)]
    assert all(row.milliseconds[2] > 0.0 for row in rows)
    assert all(row.dense == rows[0].milliseconds for row in rows)


@pytest.mark.skipif(torch.cuda.is_available(), reason="only where there is no GPU")
def test_without_a_gpu_the_table_says_so():
    (row,) = sparse_speed.semi_structured_rows(seconds=0.0)
    assert not row.milliseconds
    line = markdown([row]).splitlines()[-1]
    assert "no CUDA GPU here" in line
    assert "not measured; PyTorch: " in line
    assert "CUDA tensors" in line


def test_the_table_compares_with_the_dense_network():
    row = Row("net", "here", "50%", {1: 2.0, 64: 50.0}, {1: 1.0, 64: 100.0})
    lines = markdown([row]).splitlines()
    assert lines[2:] == [
        "| net | here | 50% | 1 | 2 | 0.50 |",
        "| net | here | 50% | 64 | 50 | 2.00 |",
    ]
    assert {line.count("|") for line in lines} == {7}
    assert markdown([Row("net", "gpu", "2:4", {}, {}, "why")]).splitlines()[2].count("|") == 7


def test_an_exported_layer_is_timed_with_and_without_zeros(monkeypatch):
    monkeypatch.setattr(sparse_speed, "ZEROS", sparse_speed.ZEROS[-1:])
    rows = sparse_speed.onnx_rows(
        "layer", lambda: nn.Sequential(nn.Linear(16, 8)), (16,), seconds=0.0
    )
    assert [row.zeros for row in rows] == ["dense", "2:4"]
    assert all(ms > 0.0 for row in rows for ms in row.milliseconds.values())
