"""Scales and zero points of a layer's weights, bucket by bucket."""

from __future__ import annotations

import torch
from torch import Tensor

from amc_compress.learners.quantization.uniform.quantizer import (
    affine_parameters,
    integer_range,
    split_buckets,
)
from amc_compress.learners.quantization.uniform.ranges import clipping_ranges


def weight_scales(
    weight: Tensor,
    bits: int,
    rule: str,
    *,
    symmetric: bool,
    granularity: str,
    bucket_size: int,
    axis: int = 0,
    name: str = "the weights",
    mask: Tensor | None = None,
    importance: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Returns scale and zero point of every bucket of a layer's weights.

    Args:
        weight: Weights of any shape.
        bits: Bits per weight.
        rule: Name in ``RANGE_RULES``, or ``"lsq"``: ``2 <|w|> / sqrt(Q_p)`` (Esser et al. 2020).
        symmetric: Whether the zero point is 0.
        granularity: What shares a scale.
        bucket_size: Weights per bucket of ``"split"`` and ``"group"``.
        axis: Along which channels lie.
        name: What to call the weights in messages.
        mask: Which weights count, bool, the shape of ``weight``; the others are zeros. All count
            if ``None``.
        importance: By which squared errors of the rule ``"mse"`` count, the shape of ``weight``.

    Raises:
        InputDataError: If a weight is NaN or infinite.
    """
    if axis and granularity in ("channel", "group"):
        weight = weight.movedim(axis, 0)
        mask = None if mask is None else mask.movedim(axis, 0)
        importance = None if importance is None else importance.movedim(axis, 0)
    rows = _rows(weight, granularity, bucket_size)
    kept = None if mask is None else _rows(mask.to(rows), granularity, bucket_size)
    if kept is not None:
        # Every range holds 0 exactly, so zeros change no extreme and no error.
        rows = rows * kept
    if rule == "lsq":
        steps = integer_range(bits, symmetric)[1]
        count = rows.shape[1] if kept is None else kept.sum(1).clamp(min=1)
        scale = 2 * rows.abs().sum(1) / count / torch.tensor(float(steps)).sqrt()
        high = scale * steps / (1 if symmetric else 2)
        return affine_parameters(-high, high, bits, symmetric)
    if rule == "percentile" and kept is not None:
        low, high = _percentiles_of_kept(rows, kept > 0, bits, symmetric, name)
    else:
        counts = None if importance is None else _rows(importance, granularity, bucket_size)
        found = clipping_ranges(
            rows, [bits], rule, symmetric=symmetric, name=name, importance=counts
        )
        low, high = (ends[0] for ends in found)
    return affine_parameters(low, high, bits, symmetric)


def _rows(weight: Tensor, granularity: str, bucket_size: int) -> Tensor:
    if granularity == "split":
        return split_buckets(weight, bucket_size)
    if granularity == "group":
        return split_buckets(weight, bucket_size, len(weight))
    return weight.reshape(weight.shape[0] if granularity == "channel" else 1, -1)


def _percentiles_of_kept(
    rows: Tensor, kept: Tensor, bits: int, symmetric: bool, name: str
) -> tuple[Tensor, Tensor]:
    """Returns the ends of the ranges; zeros would move a percentile, so they are left out."""
    ends = rows.new_zeros(2, rows.shape[0])
    for index, (row, counted) in enumerate(zip(rows, kept, strict=True)):
        if bool(counted.any()):
            numbers = row[counted][None]
            low, high = clipping_ranges(
                numbers, [bits], "percentile", symmetric=symmetric, name=name
            )
            ends[:, index] = torch.stack([low[0, 0], high[0, 0]])
    return ends[0], ends[1]
