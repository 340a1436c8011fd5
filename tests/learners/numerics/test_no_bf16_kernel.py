"""What has no bfloat16 kernel runs in float32, and is named."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from amc_compress.learners.candidates.inference.held_samples import settled_dtype
from amc_compress.learners.numerics.precision import autocast


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.both = nn.Linear(6, 6), nn.Bilinear(6, 6, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        return self.both(x, x)


class OnlyFloat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        if x.dtype != torch.float32:
            raise TypeError("only float32")
        return x


def test_an_operator_without_a_kernel_computes_in_float32_and_learns():
    torch.manual_seed(0)
    network, x = Products(), torch.randn(8, 6)
    expected = network(x)
    with autocast(torch.bfloat16, "cpu") as exact:
        found = network(x)
        found.float().square().sum().backward()
    assert list(exact) == ["bilinear"]
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.05)
    assert network.first.weight.grad is not None
    assert network.first.weight.grad.any()


def test_other_errors_stay_what_they_are():
    with (
        autocast(torch.bfloat16, "cpu") as exact,
        pytest.raises(RuntimeError, match="same number of dimensions"),
    ):
        torch.cat([torch.zeros(2, 3, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16)])
    assert not exact


def test_what_cannot_compute_in_bf16_is_told():
    torch.manual_seed(0)
    x, told = torch.randn(8, 6), []
    settled_dtype([Products().eval()], x, torch.bfloat16, fused=False, told=told)
    assert told == ["what has no kernel for torch.bfloat16 runs in float32: bilinear"]
    told.clear()
    network = OnlyFloat().eval()
    dtype = settled_dtype([network], x, torch.bfloat16, fused=False, told=told)
    assert dtype == torch.float32
    assert told == ["the network cannot compute in torch.bfloat16 (only float32)"]
