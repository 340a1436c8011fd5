"""Clipping ranges against brute force, and on inputs without a range."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from amc_compress.learners.quantization import RANGE_RULES, UniformQuantizer, clipping_ranges
from amc_compress.learners.quantization.uniform.quantizer import affine_parameters
from amc_compress.learners.quantization.uniform.ranges import _best_threshold
from amc_env.errors import InputDataError

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
    assert (found <= 1.05 * tried.amin(0)).all()
    if bits <= 3:
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
    assert float(high) == pytest.approx(np.percentile(np.abs(x.numpy()), 99.99), abs=1e-5)
    assert float(low) == -float(high)
    sparse = torch.zeros(1, 100_000)
    sparse[0, 3] = 2.0
    assert float(clipping_ranges(sparse, [8], "percentile", symmetric=False)[1]) == 2.0


def slow_divergence(counts, bins, levels):
    """TensorRT's published procedure, bin by bin."""
    reference = [float(c) for c in counts[:bins]]
    reference[-1] += float(sum(counts[bins:]))
    approximated = [0.0] * bins
    for level in range(levels):
        members = [i for i in range(bins) if min(i * levels // bins, levels - 1) == level]
        filled = [i for i in members if reference[i] > 0]
        mass = sum(counts[i] for i in members)
        for i in filled:
            approximated[i] = mass / len(filled)
    p_sum, q_sum = sum(reference), sum(approximated)
    return sum(
        p / p_sum * math.log((p / p_sum) / max(q / q_sum, 1e-10))
        for p, q in zip(reference, approximated, strict=True)
        if p > 0
    )


def test_kl_finds_the_smallest_divergence():
    x = np.abs(np.random.default_rng(0).normal(size=20_000))
    counts = np.histogram(x / x.max(), 2048, (0.0, 1.0))[0].astype(np.float64)
    candidates = [*range(32, 2049, 96), 2048]
    for levels in (4, 8):
        kept = round(_best_threshold(counts, levels) * 2048)
        best = slow_divergence(counts, kept, levels)
        assert kept < 2000
        assert all(best <= slow_divergence(counts, c, levels) + 1e-9 for c in candidates)


def test_kl_clips_more_with_fewer_bits():
    x = torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    high = clipping_ranges(x, [2, 3, 4, 8], "kl", symmetric=True)[1][:, 0]
    assert (high.diff() >= 0).all()
    assert 0.5 < float(high[0]) < float(high[-1]) <= float(x.abs().max())


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
def test_numbers_that_are_none_are_rejected(bad):
    x = values()
    x[1, 7] = bad
    with pytest.raises(InputDataError, match=r"Expected finite numbers in layer1\.conv"):
        clipping_ranges(x, [4], "mse", symmetric=True, name="layer1.conv")
    with pytest.raises(InputDataError, match="got none"):
        clipping_ranges(torch.zeros(2, 0), [4], "mse", symmetric=True)


def test_unknown_rules_and_bits_are_rejected():
    with pytest.raises(ValueError, match="Unknown range rule 'best'"):
        clipping_ranges(values(), [4], "best", symmetric=True)
    with pytest.raises(ValueError, match="Expected 2 to 8 bits, got 16"):
        clipping_ranges(values(), [16], "mse", symmetric=True)
