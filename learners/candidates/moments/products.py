"""Sums of the squares of wide matrices, of which one half is computed."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

_BLOCK = 512


def add_squares(total: Tensor | None, rows: Tensor) -> Tensor:
    """Adds ``rows^T rows`` on the diagonal and above, in blocks; :func:`mirror` does the rest.

    Args:
        total: What it is added to, in place; ``None`` for zeros.
        rows: Shape (conv groups, rows, n).

    Returns:
        Shape (conv groups, n, n).
    """
    n_groups, _, width = rows.shape
    if total is None:
        total = rows.new_zeros(n_groups, width, width)
    left = rows.transpose(1, 2)
    for start, stop in _blocks(width):
        # Not added inside of the product: sums of batches stay what they are in one piece.
        total[:, start:stop, start:] += left[:, start:stop] @ rows[:, :, start:]
    return total


def mirror(total: Tensor) -> None:
    """Copies what is above the diagonal of square matrices to below, in place."""
    for start, stop in _blocks(total.shape[2]):
        total[:, stop:, start:stop] = total[:, start:stop, stop:].transpose(1, 2)
        block = total[:, start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).transpose(1, 2))


def _blocks(width: int) -> Iterator[tuple[int, int]]:
    for start in range(0, width, _BLOCK):
        yield start, min(start + _BLOCK, width)
