"""Clipping ranges against brute force, and on inputs without a range."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from amc_env.errors import InputDataError
from learners.quantization import RANGE_RULES, UniformQuantizer, clipping_ranges
from learners.quantization.ranges import _best_threshold
from learners.quantization.uniform_quantizer import affine_parameters

BITS = (2, 3, 4, 8)


def values(rows=3, n=400, seed=0):
    x = torch.randn(rows, n, generator=torch.Generator().manual_seed(seed))
    x[:, 0] = 9.0  # an outlier
    return x


def squared_error(x, low, high, bits, symmetric):
    scale, zero = affine_parameters(low, high, bits, symmetric)
    quantizer = UniformQuantizer(bits, scale, zero, symmetric=symmetric, granularity="channel")
    return (quantizer(x) - x).square().sum(1)


@pytest.mark.parametrize("symmetric", [True, False])
def test_minmax_holds_everything(symmetric):
    x = values()
    low, high = clipping_ranges(x, BITS, "minmax", symmetric=symmetric)
    assert low.shape == high.shape == (len(BITS), 3)
    assert torch.equal(high, x.amax(1).expand(4, 3))
    assert torch.equal(low, (-x.amax(1) if symmetric else x.amin(1)).expand(4, 3))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", BITS)
def test_mse_is_as_good_as_a_fine_search(symmetric, bits):
    x = values()
    low, high = clipping_ranges(x, [bits], "mse", symmetric=symmetric)
    found = squared_error(x, low[0], high[0], bits, symmetric)
    ends = (-x.abs().amax(1), x.abs().amax(1)) if symmetric else (x.amin(1), x.amax(1))
    tried = torch.stack(
        [
            squared_error(x, ends[0] * r, ends[1] * r, bits, symmetric)
            for r in np.linspace(0.005, 1, 1000)
        ]
    )
    assert (found <= 1.02 * tried.amin(0)).all()
    if bits <= 4:
        assert (found < 0.7 * tried[-1]).all()  # than without clipping


def test_mse_in_pieces_is_mse():
    x = values(rows=40, n=60_000)
    low, high = clipping_ranges(x, [3], "mse", symmetric=True)
    one = clipping_ranges(x[17:18], [3], "mse", symmetric=True)
    assert low[0, 17] == one[0][0, 0]
    assert high[0, 17] == one[1][0, 0]


def test_percentile_clips_the_tails():
    x = torch.linspace(-1, 3, 100_001)[None]
    low, high = clipping_ranges(x, [8], "percentile", symmetric=False)
    assert float(low) == pytest.approx(-1 + 4e-4, abs=1e-5)
    assert float(high) == pytest.approx(3 - 4e-4, abs=1e-5)
    low, high = clipping_ranges(x, [8], "percentile", symmetric=True)
    assert float(high) == pytest.approx(np.percentile(np.abs(x), 99.99), abs=1e-5)
    assert float(low) == -float(high)
    sparse = torch.zeros(1, 100_000)
    sparse[0, 3] = 2.0
    assert float(clipping_ranges(sparse, [8], "percentile", symmetric=False)[1]) == 2.0


def test_kl_keeps_a_uniform_distribution_and_clips_an_outlier():
    """A histogram with as many levels as occupied bins loses nothing when whole."""
    counts = np.zeros(2048)
    counts[:512] = 100.0
    counts[2047] = 1.0
    assert _best_threshold(counts, 128) == pytest.approx(512 / 2048, abs=0.02)
    assert _best_threshold(np.full(2048, 10.0), 128) == 1.0
    x = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0))
    x[0, 0] = 10.0
    high = clipping_ranges(x, [8, 4], "kl", symmetric=False)[1]
    assert 0.9 < float(high[0]) < 1.5
    assert float(high[1]) < 1.5


@pytest.mark.parametrize("rule", RANGE_RULES)
@pytest.mark.parametrize("symmetric", [True, False])
def test_constants_zeros_and_tiny_numbers_have_ranges(rule, symmetric):
    x = torch.stack([torch.full((50,), 0.7), torch.zeros(50), torch.full((50,), -1e-30)])
    for row in (0, 1, 2):
        low, high = clipping_ranges(x[row : row + 1], [4], rule, symmetric=symmetric)
        scale, zero = affine_parameters(low[0], high[0], 4, symmetric)
        quantizer = UniformQuantizer(4, scale, zero, symmetric=symmetric)
        assert float((quantizer(x[row]) - x[row]).abs().max()) <= 0.1
    low, high = clipping_ranges(x, [2, 4], rule, symmetric=symmetric)
    assert low.isfinite().all()
    assert high.isfinite().all()
    assert float(high[0, 1]) == float(low[0, 1]) == 0.0


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_refused(bad):
    x = values()
    x[1, 7] = bad
    with pytest.raises(InputDataError, match=r"Expected finite numbers in layer1\.conv"):
        clipping_ranges(x, [4], "mse", symmetric=True, name="layer1.conv")
    with pytest.raises(InputDataError, match="got none"):
        clipping_ranges(torch.zeros(2, 0), [4], "mse", symmetric=True)


def test_unknown_rules_and_bits_are_refused():
    with pytest.raises(ValueError, match="Unknown range rule 'best'"):
        clipping_ranges(values(), [4], "best", symmetric=True)
    with pytest.raises(ValueError, match="Expected 2 to 8 bits, got 16"):
        clipping_ranges(values(), [16], "mse", symmetric=True)
