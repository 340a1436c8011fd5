"""Equally spaced values: scale and zero point per tensor, channel, bucket or group of a row.

``x_q = s (clamp(round(x / s) + z, q_min, q_max) - z)`` (Jacob et al. 2018, Eq. 1), rounding half to
even. Signed and symmetric: ``z = 0`` and the narrow range ``-(2^(k-1) - 1) .. 2^(k-1) - 1``, so
that negative and positive weights are treated alike; affine: ``0 .. 2^k - 1``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.layers.bit_layers import along
from amc_compress.learners.layers.quantizer import Quantizer
from amc_env.errors import InputDataError
from amc_env.validation.checks import check_known

MIN_BITS, MAX_BITS = 2, 8
GRANULARITIES = ("tensor", "channel", "split", "group")
SCALE_TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
"""What scales of weights are stored as."""

_WHOLE = ("tensor", "channel")  # the tensor is not cut into pieces
Bound = Tensor | int
SMALLEST_SCALE = 1e-12  # its inverse is still far from infinite in float32


class UniformQuantizer(Quantizer):
    """Uniform quantization with a straight-through gradient.

    Forward equals ``torch.fake_quantize_per_tensor_affine`` and ``_per_channel_affine`` bit for
    bit, backward as well; on a processor plain vectorised operators are about thirty times as fast.

    Args:
        bits: Bits per number, 2 to 8.
        scale: Step between two values, float32, shape (buckets,).
        zero_point: Integer that stands for 0, shape (buckets,); zeros if ``None``.
        symmetric: Whether integers are signed with zero point 0.
        granularity: What shares a scale: ``"tensor"``, ``"channel"`` (an index along ``axis``),
            ``"split"`` (contiguous pieces of ``bucket_size`` numbers, the last one shorter) or
            ``"group"`` (such pieces of every channel, so that none reaches into the next one).
        bucket_size: Numbers per bucket of ``"split"`` and ``"group"``.
        axis: Along which channels lie.
        learned: Whether the scale is trained (LSQ, Esser et al. 2020).
        numbers: Numbers per scale in LSQ's gradient scale; counted on the input if ``None``.
        scale_type: Name in :data:`SCALE_TYPES`: what scales are rounded to, and stored as. They are
            held in float32 as well.

    Attributes:
        quant_min: Smallest integer.
        quant_max: Largest integer.

    Raises:
        ValueError: If an argument is out of range.
    """

    kind: ClassVar[str] = "uniform"
    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        bits: int,
        scale: Tensor,
        zero_point: Tensor | None = None,
        *,
        symmetric: bool = True,
        granularity: str = "tensor",
        bucket_size: int = 256,
        axis: int = 0,
        learned: bool = False,
        numbers: int | None = None,
        scale_type: str = "float32",
    ) -> None:
        super().__init__()
        self.quant_min, self.quant_max = integer_range(bits, symmetric)
        check_granularity(granularity, bucket_size)
        scale = rounded_scales(scale.detach().reshape(-1), scale_type)
        if granularity == "tensor" and scale.numel() != 1:
            raise ValueError(f"Expected one scale per tensor, got {scale.numel()}.")
        if not scale.isfinite().all():
            raise ValueError("Expected finite scales, got NaN or infinite ones.")
        if zero_point is None:
            zero_point = torch.zeros_like(scale)
        zero_point = zero_point.detach().reshape(-1).to(torch.int32)
        if symmetric and bool(zero_point.any()):
            raise ValueError("Expected zero points of 0 with symmetric=True.")
        self.bits = bits
        self.symmetric = symmetric
        self.granularity = granularity
        self.bucket_size = bucket_size
        self.axis = axis
        self.learned = learned
        self.numbers = numbers
        self.scale_type = scale_type
        if learned:
            self.scale = nn.Parameter(scale)
        else:
            self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)

    @property
    def scale_dtype(self) -> torch.dtype:
        """What scales are stored as."""
        return SCALE_TYPES[self.scale_type]

    def forward(self, x: Tensor) -> Tensor:
        """Returns the nearest representable numbers, float32, in the shape of ``x``.

        The gradient is 1 inside the range and 0 outside; that of a learned scale is LSQ's.
        """
        x = x.float()  # also under autocast: 8 bits of mantissa cannot tell 8-bit codes apart
        buckets = self._buckets(x)
        scale, low, high = self._steps(buckets)
        if not torch.is_grad_enabled():
            return self._restore(_round_to_grid(buckets, scale, low, high), x)
        factor = 0.0
        if self.learned:
            count = self.numbers or buckets.numel() // self.scale.numel()
            factor = 1.0 / math.sqrt(count * self.quant_max)
        result = _StraightThrough.apply(buckets, scale, low, high, factor)  # type: ignore[no-untyped-call]
        assert isinstance(result, Tensor)
        return self._restore(result, x)

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Returns codes ``integer - quant_min``, uint8, in the shape of ``x``."""
        x = x.float()
        buckets = self._buckets(x)
        scale, low, high = self._steps(buckets)
        integers = _clamp_((buckets * (1.0 / scale)).round_(), low, high)
        return self._restore(integers - low, x).to(torch.uint8)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the numbers that codes stand for, float32, bit for bit those of forward."""
        buckets = self._buckets(codes.float())
        scale, low, _ = self._steps(buckets)
        return self._restore((buckets + low) * scale, codes)

    @torch.no_grad()
    def steps_of(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns the step of every number, and the least and largest multiple of it it may be.

        Each in the shape of ``x``, whose numbers do not matter.
        """
        buckets = self._buckets(torch.zeros_like(x, dtype=torch.float32))
        parts = (buckets + part for part in self._steps(buckets))
        step, low, high = (self._restore(part, x) for part in parts)
        return step, low, high

    def train(self, mode: bool = True) -> Self:
        """Switches the mode; in ``eval`` mode the scales that callers read are positive."""
        if self.learned and not mode:
            with torch.no_grad():
                self.scale.clamp_(min=SMALLEST_SCALE)
        return super().train(mode)

    def describe(self) -> dict[str, Any]:
        """Returns all arguments but the tensors, whose length is ``"buckets"``."""
        return {
            "kind": self.kind,
            "bits": self.bits,
            "buckets": self.scale.numel(),
            "symmetric": self.symmetric,
            "granularity": self.granularity,
            "bucket_size": self.bucket_size,
            **({"axis": self.axis} if self.axis else {}),
            **({"scale_type": self.scale_type} if self.scale_type != "float32" else {}),
            "learned": self.learned,
            "numbers": self.numbers,
        }

    @classmethod
    def empty(cls, description: dict[str, Any]) -> UniformQuantizer:
        """Builds a quantizer of unit scales."""
        options = {k: v for k, v in description.items() if k not in ("kind", "bits", "buckets")}
        return cls(int(description["bits"]), torch.ones(int(description["buckets"])), **options)

    def rescale(self, factor: Tensor) -> bool:
        """Multiplies the scales of every channel, where each has its own: one, or of groups."""
        groups, rest = divmod(self.scale.numel(), factor.numel())
        own = self.granularity == "channel" and groups == 1
        if rest or not (own or self.granularity == "group"):
            return False
        with torch.no_grad():
            scale = self.scale.view(-1, groups) * factor.to(self.scale).unsqueeze(1)
            self.scale.copy_(rounded_scales(scale.view(-1), self.scale_type))
        return True

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        form = "symmetric" if self.symmetric else "affine"
        return f"{self.bits} bits, {form}, {self.granularity}" + (", learned" * self.learned)

    def _steps(self, buckets: Tensor) -> tuple[Tensor, Bound, Bound]:
        """Returns scale, smallest and largest multiple of it, as they broadcast over buckets."""
        scale = self.scale
        if self.learned:
            # A step of training may carry it across zero. Straight through, not clamp, whose
            # gradient is 0 there: the scale would never come back.
            floor = scale - scale.detach() + SMALLEST_SCALE
            scale = torch.where(scale < SMALLEST_SCALE, floor, scale)
        if self.granularity != "tensor":
            axis = self.axis if self.granularity == "channel" else 0
            scale = along(scale, axis, buckets.dim())
        if self.symmetric:
            return scale, self.quant_min, self.quant_max
        if self.granularity == "tensor" and not torch.compiler.is_compiling():
            zero = int(self.zero_point)  # clamping between numbers is eight times as fast
            return scale, self.quant_min - zero, self.quant_max - zero
        shape = scale.shape
        low, high = self.quant_min - self.zero_point, self.quant_max - self.zero_point
        return scale, low.float().view(shape), high.float().view(shape)

    def _buckets(self, x: Tensor) -> Tensor:
        """Returns ``x``, or its pieces along axis 0."""
        return x if self.granularity in _WHOLE else split_buckets(*self._lines(x))

    def _lines(self, x: Tensor) -> tuple[Tensor, int, int]:
        """Returns what is cut into pieces, their size, and how many lines are cut alone."""
        if self.granularity == "split":
            return x, self.bucket_size, 1
        return x.movedim(self.axis, 0), self.bucket_size, x.shape[self.axis]

    def _restore(self, buckets: Tensor, like: Tensor) -> Tensor:
        if self.granularity in _WHOLE:
            return buckets
        lines, _, count = self._lines(like)
        filled = buckets.reshape(count, -1)
        found = filled[:, : lines.numel() // count].reshape(lines.shape)
        return found if self.granularity == "split" else found.movedim(0, self.axis)


def rounded_scales(scale: Tensor, scale_type: str) -> Tensor:
    """Returns scales as a file of that type holds them, float32, none of them 0.

    Args:
        scale: Of any shape.
        scale_type: Name in :data:`SCALE_TYPES`.

    Raises:
        InputDataError: If one is too large for the type.
    """
    check_known("scale_type", scale_type, SCALE_TYPES)
    kind = SCALE_TYPES[scale_type]
    smallest = torch.finfo(kind).tiny * torch.finfo(kind).eps  # the last one above 0
    found = scale.float().clamp(min=max(SMALLEST_SCALE, smallest)).to(kind).float()
    if bool((found.isinf() & scale.isfinite()).any()):
        raise InputDataError(
            f"Expected weights whose scales {scale_type} can hold, got a scale of "
            f"{float(scale.max()):.3g}; store scales as float32 or bfloat16."
        )
    return found


def integer_range(bits: int, symmetric: bool) -> tuple[int, int]:
    """Returns the smallest and the largest integer.

    Raises:
        ValueError: If there is no quantizer of so many bits.
    """
    if bits != int(bits) or not MIN_BITS <= bits <= MAX_BITS:
        raise ValueError(f"Expected {MIN_BITS} to {MAX_BITS} bits, got {bits}.")
    if symmetric:
        return -(2 ** (bits - 1) - 1), 2 ** (bits - 1) - 1
    return 0, 2**bits - 1


def check_granularity(
    granularity: str, bucket_size: int, known: Sequence[str] = GRANULARITIES
) -> None:
    """Rejects unknown names and empty buckets.

    Raises:
        ValueError: If it is not a way to share scales.
    """
    check_known("granularity", granularity, known)
    if bucket_size < 1:
        raise ValueError(f"Expected bucket_size >= 1, got {bucket_size}.")


def split_buckets(x: Tensor, size: int, lines: int = 1) -> Tensor:
    """Cuts a tensor into contiguous buckets, shape (buckets, size).

    The last bucket is filled up with its last number, which changes neither its minimum nor its
    maximum.

    Args:
        x: Of any shape.
        size: Numbers per bucket.
        lines: Equal pieces of the tensor that are cut each alone.
    """
    flat = x.reshape(lines, -1)
    missing = -flat.shape[1] % size
    return (
        F.pad(flat, (0, missing), mode="replicate").reshape(-1, size)
        if missing
        else flat.reshape(-1, size)
    )


def _clamp_(x: Tensor, low: Bound, high: Bound) -> Tensor:
    if isinstance(low, Tensor):
        assert isinstance(high, Tensor)
        return x.clamp_(low, high)
    assert not isinstance(high, Tensor)
    return x.clamp_(low, high)


def _round_to_grid(x: Tensor, scale: Tensor, low: Bound, high: Bound) -> Tensor:
    # The zero point is added after rounding and taken away again, so it moves the bounds only.
    # Times the inverse, not divided: that is what torch.fake_quantize computes.
    return _clamp_((x * (1.0 / scale)).round_(), low, high).mul_(scale)


class _StraightThrough(torch.autograd.Function):
    """Rounding whose gradient is the identity inside the range; LSQ's for the scale."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, scale: Tensor, low: Bound, high: Bound, factor: float
    ) -> Tensor:
        ratio = x * (1.0 / scale)
        integers = ratio.round()
        ctx.factor = factor
        ctx.shape = scale.shape
        clipped = _clamp_(integers.clone(), low, high)
        if factor:
            # Esser et al. 2020, Eq. 3 and 5: round(v/s) - v/s inside, the bound outside.
            inside = (ratio > low) & (ratio < high)
            ctx.save_for_backward(inside, torch.where(inside, clipped - ratio, clipped))
        else:  # what rounds into the range is inside, as in torch.fake_quantize
            ctx.save_for_backward(integers == clipped)
        return clipped.mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        inside, *slopes = ctx.saved_tensors
        by_scale = None
        if slopes:
            by_scale = (gradient * slopes[0]).sum_to_size(ctx.shape) * ctx.factor
        return gradient * inside, by_scale, None, None, None


def affine_parameters(
    low: Tensor, high: Tensor, bits: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Returns scale (float32) and zero point (int32) of clipping ranges.

    Zero is always representable: ranges are widened to hold it. A range of width 0 (all numbers
    are zero) gets scale 1.

    Args:
        low: Lower ends, shape (buckets,).
        high: Upper ends, shape (buckets,).
        bits: Bits per number.
        symmetric: Whether the zero point is 0 in the middle.
    """
    smallest, largest = integer_range(bits, symmetric)
    if symmetric:
        width, steps = torch.maximum(low.abs(), high.abs()), largest
    else:
        low, high = low.clamp(max=0), high.clamp(min=0)
        width, steps = high - low, largest - smallest
    scale = torch.where(width > 0, width / steps, 1.0).float().clamp(min=SMALLEST_SCALE)
    if symmetric:
        return scale, torch.zeros_like(scale, dtype=torch.int32)
    return scale, (-low / scale).round().clamp(smallest, largest).to(torch.int32)
