"""Clipping ranges of quantizers.

``minmax``      everything representable
``percentile``  the outermost 0.01% are clipped on each side
``mse``         the range of smallest squared error, of 80 shrunken min-max ranges
``kl``          the range of smallest Kullback-Leibler divergence of histograms (as TensorRT)
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from amc_compress.learners.quantization.uniform.quantizer import affine_parameters, integer_range
from amc_env.errors import InputDataError
from amc_env.validation.checks import check_known

RANGE_RULES = ("minmax", "percentile", "mse", "kl")
PERCENTILE = 99.99
_BINS = 2048
_CHUNK = 1 << 20  # numbers per step of the grid search: they stay in the cache
# Fine steps where many bits end up, coarse ones for the long tails of few bits.
_RATIOS = [*np.geomspace(0.01, 0.19, 15), *np.linspace(0.2, 1.0, 65)]


def clipping_ranges(
    values: Tensor,
    bits: Sequence[int],
    rule: str,
    *,
    symmetric: bool,
    name: str = "the tensor",
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns the ends of the ranges of every bucket for every number of bits.

    Args:
        values: The numbers, float32, shape (buckets, n).
        bits: Numbers of bits.
        rule: Name in ``RANGE_RULES``.
        symmetric: Whether the quantizer will be symmetric.
        name: What to call the tensor in messages.
        importance: By which squared errors count with ``"mse"``, the shape of ``values``; all the
            same if not given.

    Returns:
        Lower and upper ends, each of shape (len(bits), buckets); both 0 for a bucket of zeros.

    Raises:
        ValueError: If the rule is unknown or the bits are out of range.
        InputDataError: If there is no number, or one is NaN or infinite.
    """
    check_rule(rule)
    for b in bits:
        integer_range(b, symmetric)
    if values.numel() == 0:
        raise InputDataError(f"Expected numbers to find a range of in {name}, got none.")
    values = values.detach().float()
    if not values.isfinite().all():
        raise InputDataError(
            f"Expected finite numbers in {name}, got NaN or infinite ones; check the weights and "
            f"the calibration images."
        )
    low, high = values.amin(1), values.amax(1)
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    if rule == "percentile":
        low, high = _percentile(values, low, high, symmetric)
    shape = (len(bits), values.shape[0])
    if rule in ("minmax", "percentile"):
        return low.expand(shape).clone(), high.expand(shape).clone()
    if rule == "mse":
        ratios = torch.stack(
            [_best_ratio(values, low, high, b, symmetric, importance) for b in bits]
        )
    else:
        ratios = torch.stack([_kl_ratio(values, low, high, b, symmetric) for b in bits])
    return low * ratios, high * ratios


def check_rule(rule: str) -> None:
    """Rejects unknown rules.

    Raises:
        ValueError: If there is none of that name.
    """
    check_known("range rule", rule, RANGE_RULES)


def _percentile(
    values: Tensor, low: Tensor, high: Tensor, symmetric: bool
) -> tuple[Tensor, Tensor]:
    numbers = values.cpu().numpy()
    if symmetric:
        clip = np.percentile(np.abs(numbers), PERCENTILE, axis=1)
        ends = (-clip, clip)
    else:
        ends = tuple(np.percentile(numbers, (100 - PERCENTILE, PERCENTILE), axis=1))
    first, last = (torch.from_numpy(np.asarray(e, dtype=np.float32)).to(low) for e in ends)
    # So few numbers differ from 0 that all of them are in the tail: keep them.
    empty = (first == 0) & (last == 0)
    return torch.where(empty, low, first), torch.where(empty, high, last)


def _best_ratio(
    values: Tensor,
    low: Tensor,
    high: Tensor,
    bits: int,
    symmetric: bool,
    importance: Tensor | None = None,
) -> Tensor:
    """Returns the share of the range with the smallest squared error, shape (buckets,)."""
    rows = max(1, _CHUNK // values.shape[1])
    found = []
    for start in range(0, len(values), rows):
        part = slice(start, start + rows)
        counts = None if importance is None else importance[part]
        ends = low[part], high[part]
        found.append(_best_ratio_of_rows(values[part], *ends, bits, symmetric, counts))
    return torch.cat(found)


def _best_ratio_of_rows(
    values: Tensor,
    low: Tensor,
    high: Tensor,
    bits: int,
    symmetric: bool,
    importance: Tensor | None,
) -> Tensor:
    smallest, largest = integer_range(bits, symmetric)
    best = torch.full_like(low, torch.inf)
    chosen = torch.ones_like(low)
    buffer = torch.empty_like(values)
    for ratio in reversed(_RATIOS):  # of equally good ranges the widest
        scale, zero = affine_parameters(low * ratio, high * ratio, bits, symmetric)
        column = scale[:, None]
        torch.mul(values, 1.0 / column, out=buffer)
        buffer.round_().clamp_((smallest - zero)[:, None], (largest - zero)[:, None])
        buffer.mul_(column).sub_(values).square_()
        error = (buffer if importance is None else buffer.mul_(importance)).sum(1)
        better = error < best
        best = torch.where(better, error, best)
        chosen = torch.where(better, float(ratio), chosen)
    return chosen


def _kl_ratio(values: Tensor, low: Tensor, high: Tensor, bits: int, symmetric: bool) -> Tensor:
    """Returns one share for all buckets: histograms need more numbers than a channel has.

    Magnitudes are measured in units of their bucket's largest one and pooled.
    """
    ends = torch.maximum(low.abs(), high.abs())
    units = (values.abs() / ends.clamp(min=1e-30)[:, None]).cpu().numpy()
    units = units[units > 0]  # zero is representable whatever the range
    if units.size == 0:
        return torch.ones_like(low)
    signed = symmetric or bool((low < 0).any())
    levels = 2 ** (bits - 1) if signed else 2**bits
    counts = np.histogram(units, _BINS, (0.0, 1.0))[0].astype(np.float64)
    return torch.full_like(low, float(_best_threshold(counts, levels)))


def _best_threshold(counts: np.ndarray, levels: int) -> float:
    """Returns the share of the histogram's bins to keep, by TensorRT's rule.

    The clipped distribution puts all outliers into its last bin; the quantized one spreads the
    mass of each of ``levels`` equal pieces over the bins of it that are not empty.
    """
    best, kept = np.inf, _BINS
    first = max(levels, _BINS // 64)
    for bins in range(first, _BINS + 1, 16):
        inside = counts[:bins]
        clipped = inside.copy()
        clipped[-1] += counts[bins:].sum()
        piece = np.minimum(np.arange(bins) * levels // bins, levels - 1)
        filled = (clipped > 0).astype(np.float64)
        mass = np.bincount(piece, inside, levels)
        share = mass / np.maximum(np.bincount(piece, filled, levels), 1.0)
        approximated = share[piece] * filled
        if approximated.sum() <= 0.0:
            continue
        divergence = _divergence(clipped / clipped.sum(), approximated / approximated.sum())
        if divergence < best:
            best, kept = divergence, bins
    return kept / _BINS


def _divergence(p: np.ndarray, q: np.ndarray) -> float:
    """Returns ``sum p log(p / q)``; an event that ``q`` excludes costs as if it had 1e-10."""
    used = p > 0
    return float((p[used] * np.log(p[used] / np.maximum(q[used], 1e-10))).sum())
