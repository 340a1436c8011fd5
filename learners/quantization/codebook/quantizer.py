"""Values from a codebook: ``2 ** bits`` learned centroids per tensor, channel or bucket.

Han et al. 2016 (Deep Compression, 1510.00149): weights share the value of their nearest centroid,
and the gradient of a centroid is the sum of the gradients of its weights (Eq. 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.quantizer import Quantizer
from amc_compress.learners.quantization.codebook.init import initial_codebook
from amc_compress.learners.quantization.uniform.quantizer import (
    MAX_BITS,
    MIN_BITS,
    check_granularity,
    split_buckets,
)
from amc_env.errors import InputDataError

GRANULARITIES = ("tensor", "channel", "split")


class CodebookQuantizer(Quantizer):
    """Maps every number onto the nearest centroid of its bucket.

    The gradient passes straight through to the numbers; a centroid gets the sum of the gradients
    of the numbers assigned to it.

    Args:
        codebook: Centroids in any order, shape (buckets, 2 ** bits).
        granularity: What shares a codebook: ``"tensor"``, ``"channel"`` (an index along ``axis``)
            or ``"split"`` (contiguous pieces of ``bucket_size`` numbers, the last one shorter).
        bucket_size: Numbers per bucket of ``"split"``.
        axis: Along which channels lie.
        scale: One positive factor per channel of the numbers, for ``"tensor"`` only: a
            channel's values are the centroids times its factor. ``None`` for none.

    Attributes:
        codebook: The centroids, a parameter.
        scale: The factors, a buffer, or ``None``.
        assignments: Fixed codes (uint8, in the shape of the weights), or ``None`` where every
            number goes to its nearest centroid. See :meth:`fix_assignments`.

    Raises:
        ValueError: If an argument is out of range.
    """

    kind: ClassVar[str] = "codebook"
    assignments: Tensor | None
    scale: Tensor | None

    def __init__(
        self,
        codebook: Tensor,
        *,
        granularity: str = "tensor",
        bucket_size: int = 256,
        axis: int = 0,
        scale: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_granularity(granularity, bucket_size, GRANULARITIES)
        if codebook.dim() != 2 or codebook.shape[1] not in _SIZES:
            raise ValueError(
                f"Expected a codebook of shape (buckets, 2 ** bits) with {MIN_BITS} to {MAX_BITS} "
                f"bits, got shape {tuple(codebook.shape)}."
            )
        if granularity == "tensor" and len(codebook) != 1:
            raise ValueError(f"Expected one codebook per tensor, got {len(codebook)}.")
        if not codebook.isfinite().all():
            raise ValueError("Expected finite centroids, got NaN or infinite ones.")
        if scale is not None and granularity != "tensor":
            raise ValueError(f"Expected scales of channels with one codebook, got {granularity!r}.")
        self.bits = codebook.shape[1].bit_length() - 1
        self.granularity = granularity
        self.bucket_size = bucket_size
        self.axis = axis
        self.codebook = nn.Parameter(codebook.detach().float().clone())
        self.register_buffer("assignments", None)
        self.register_buffer("scale", None if scale is None else scale.detach().float().clone())

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        bits: int,
        *,
        granularity: str = "tensor",
        bucket_size: int = 256,
        axis: int = 0,
        init: str = "kmeans",
        channel_scales: bool = False,
        mask: Tensor | None = None,
    ) -> CodebookQuantizer:
        """Builds the quantizer of a weight tensor.

        Args:
            weight: The weights.
            bits: 2 to 8.
            granularity: What shares a codebook.
            bucket_size: Weights per bucket of ``"split"``.
            axis: Along which channels lie.
            init: ``"kmeans"``, ``"quantile"`` or ``"uniform"``, see ``initial_codebook``.
            channel_scales: With ``"tensor"``: whether every channel is divided by its root mean
                square before it shares the codebook.
            mask: Which weights count, bool, the shape of ``weight``. The others are zeros that
                need no centroid: nothing is fitted to them. All count if ``None``.

        Raises:
            InputDataError: If weights are NaN or infinite, or there are none.
            ValueError: If an option has no such value.
        """
        if bits != int(bits) or not MIN_BITS <= bits <= MAX_BITS:
            raise ValueError(f"Expected {MIN_BITS} to {MAX_BITS} bits, got {bits}.")
        check_granularity(granularity, bucket_size, GRANULARITIES)
        n = 2 ** int(bits)
        weight = weight.detach().float()
        if axis and granularity != "split":
            weight = weight.movedim(axis, 0).contiguous()
            mask = None if mask is None else mask.movedim(axis, 0).contiguous()
        if granularity == "tensor" and channel_scales and weight.dim() > 1:
            scale = _channel_sizes(weight, mask)
            rows = weight.flatten(1) / scale.view(-1, 1)
            found = _codebooks([rows.view(1, -1)], _flat([rows.view(1, -1)], mask), n, init)
            return cls(found, axis=axis, scale=scale)
        if granularity == "split":  # the shorter last bucket on its own: its filling weighs nothing
            flat = weight.reshape(-1)
            whole = flat.numel() // bucket_size * bucket_size
            parts = [flat[:whole].view(-1, bucket_size), flat[whole:].view(1, -1)]
            parts = [part for part in parts if part.numel()] or [flat.view(1, -1)]
        else:
            parts = [weight.reshape(1, -1) if granularity == "tensor" else weight.flatten(1)]
        codebook = _codebooks(parts, _flat(parts, mask), n, init)
        return cls(codebook, granularity=granularity, bucket_size=bucket_size, axis=axis)

    @classmethod
    def empty(cls, description: dict[str, Any]) -> CodebookQuantizer:
        """Builds a quantizer of zero centroids from what :meth:`describe` returned."""
        given = ("kind", "bits", "buckets", "scales")
        options = {k: v for k, v in description.items() if k not in given}
        shape = int(description["buckets"]), 2 ** int(description["bits"])
        scales = int(description.get("scales", 0))
        return cls(torch.zeros(shape), scale=torch.ones(scales) if scales else None, **options)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the nearest centroids, float32, in the shape of ``x``."""
        x = x.float()
        codes = self._codes(x)
        values = self._restore(self._table().gather(1, codes), x) + 0.0
        if not torch.is_grad_enabled():
            return values
        # Adds 0 exactly; unlike the values alone it is NaN where a weight is, so that a training
        # that diverged does not look sound.
        return values + (x - x.detach())

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Returns the number of the nearest centroid, uint8, in the shape of ``x``.

        Of equal centroids the first; of two equally near ones the smaller. Fixed assignments are
        returned as they are.

        Raises:
            InputDataError: If a number is NaN or infinite.
        """
        if not bool(x.isfinite().all()):
            raise InputDataError("Expected finite weights to encode, got NaN or infinite numbers.")
        return self._restore(self._codes(x.float()), x).to(torch.uint8)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Returns the centroids that codes stand for, float32, bit for bit those of forward."""
        rows = self._buckets(codes.float()).long()
        # Adding 0 makes -0 a plain 0, as it is in forward.
        return self._restore(self._table().gather(1, rows), codes) + 0.0

    def describe(self) -> dict[str, Any]:
        """Returns all arguments but the numbers: centroids ``(buckets, 2 ** bits)``, scales."""
        description = {
            "kind": self.kind,
            "bits": self.bits,
            "buckets": len(self.codebook),
            "granularity": self.granularity,
            "bucket_size": self.bucket_size,
            **({"axis": self.axis} if self.axis else {}),
        }
        return description if self.scale is None else description | {"scales": len(self.scale)}

    def fix_assignments(self, x: Tensor | None) -> None:
        """Assigns the numbers of ``x`` for good, wherever centroids move; ``None`` frees them."""
        self.assignments = None
        if x is not None:
            self.assignments = self.encode(x)

    def rescale(self, factor: Tensor) -> bool:
        """Multiplies the values of every channel; only with a scale or codebook per channel."""
        if self.scale is not None and factor.numel() == len(self.scale):
            self.scale.mul_(factor.detach().to(self.scale))
            return True
        if self.granularity != "channel" or factor.numel() != len(self.codebook):
            return False
        with torch.no_grad():
            self.codebook.mul_(factor.to(self.codebook).view(-1, 1))
        return True

    def extra_repr(self) -> str:
        """What ``print`` shows."""
        fixed = ", fixed assignments" if self.assignments is not None else ""
        return f"{self.bits} bits, {self.granularity}{fixed}"

    def _codes(self, x: Tensor) -> Tensor:
        """Returns int64 codes in the shape of the buckets, ``(buckets, size)``."""
        if self.assignments is not None and self.assignments.shape == x.shape:
            return self._buckets(self.assignments.float()).long()
        with torch.no_grad():
            ordered, order = self._table().sort(dim=1, stable=True)
            rows = self._buckets(x.detach()).contiguous()
            return order.gather(1, torch.searchsorted(_boundaries(ordered), rows))

    def _table(self) -> Tensor:
        """Returns the values of every bucket, shape (buckets, 2 ** bits)."""
        codebook = self.codebook.float()
        return codebook if self.scale is None else codebook * self.scale.view(-1, 1)

    def _buckets(self, x: Tensor) -> Tensor:
        if self.granularity == "split":
            return split_buckets(x, self.bucket_size)
        x = x.movedim(self.axis, 0) if self.axis else x
        by_channel = self.scale is not None or self.granularity == "channel"
        return x.flatten(1) if by_channel else x.reshape(1, -1)

    def _restore(self, buckets: Tensor, like: Tensor) -> Tensor:
        flat = buckets.reshape(-1)[: like.numel()]
        if self.granularity == "split" or not self.axis:
            return flat.view(like.shape)
        return flat.view(like.movedim(self.axis, 0).shape).movedim(0, self.axis)


_SIZES = tuple(2**bits for bits in range(MIN_BITS, MAX_BITS + 1))


def _channel_sizes(weight: Tensor, mask: Tensor | None) -> Tensor:
    """Returns the root mean square of every channel's weights that count, 1 where that is 0."""
    rows = weight.flatten(1)
    if mask is None:
        scale = rows.square().mean(1).sqrt()
    else:
        kept = mask.flatten(1)
        scale = ((rows.square() * kept).sum(1) / kept.sum(1).clamp(min=1)).sqrt()
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def _flat(parts: Sequence[Tensor], mask: Tensor | None) -> list[Tensor] | None:
    """Returns the mask cut like the buckets, or ``None`` if all weights count."""
    if mask is None or bool(mask.all()):
        return None
    pieces = torch.split(mask.reshape(-1), [part.numel() for part in parts])
    return [piece.view_as(part) for piece, part in zip(pieces, parts, strict=True)]


def _codebooks(parts: Sequence[Tensor], kept: list[Tensor] | None, n: int, init: str) -> Tensor:
    """Returns the centroids of all buckets, zeros where no weight counts."""
    if kept is None:
        return torch.cat([initial_codebook(part, n, init) for part in parts])
    found = []
    for part, counts in zip(parts, kept, strict=True):
        # One by one: buckets keep different numbers of weights.
        for row, counted in zip(part, counts, strict=True):
            numbers = row[counted].view(1, -1)
            some = numbers.numel() > 0
            found.append(initial_codebook(numbers, n, init) if some else row.new_zeros(1, n))
    return torch.cat(found)


def _boundaries(ordered: Tensor) -> Tensor:
    """Returns the largest number that belongs to each centroid but the last, (buckets, n - 1).

    The middle of two centroids, kept below the upper one where rounding would reach it, so that a
    centroid is its own nearest; equal centroids share the boundary of the last of them, so that the
    first gets all.
    """
    lower, upper = ordered[:, :-1], ordered[:, 1:]
    middle = torch.maximum(lower * 0.5 + upper * 0.5, lower)
    middle = torch.where(middle >= upper, lower, middle)
    middle = torch.where(lower == upper, torch.inf, middle)
    return middle.flip(1).cummin(dim=1).values.flip(1).contiguous()
