"""Sums of the squares of wide matrices, of which one half is computed, and kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_BLOCK = 512


@dataclass(frozen=True)
class UpperHalf:
    """Symmetric matrices, of which what is on the diagonal and above is held.

    Args:
        blocks: Of rows, from the diagonal on: shape (matrices, 512, n), (matrices, 512, n - 512)
            and so on. What is below the diagonal inside of a block means nothing.
    """

    blocks: Sequence[Tensor]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the whole matrices."""
        n_matrices, _, width = self.blocks[0].shape
        return n_matrices, width, width

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(block.nbytes for block in self.blocks)

    @classmethod
    def zeros(cls, like: Tensor, n_matrices: int, width: int) -> UpperHalf:
        """Returns zeros of some type, on the device of that tensor."""
        sizes = [(stop - start, width - start) for start, stop in blocks_of(width)]
        return cls([like.new_zeros(n_matrices, *size) for size in sizes])

    def changed(self, change: Callable[[Tensor, slice, slice], Tensor]) -> UpperHalf:
        """Returns other matrices.

        Args:
            change: Makes a block from one, its rows and its columns.
        """
        width = self.shape[2]
        spans = zip(self.blocks, blocks_of(width), strict=True)
        return UpperHalf(
            [change(b, slice(start, stop), slice(start, width)) for b, (start, stop) in spans]
        )

    def add_squares(self, rows: Tensor) -> None:
        """Adds ``rows^T rows`` in place, rows of shape (matrices, rows, n)."""
        left = rows.transpose(1, 2)
        for block, (start, stop) in zip(self.blocks, blocks_of(rows.shape[2]), strict=True):
            # Not added inside of the product: sums of batches stay what they are in one piece.
            block += left[:, start:stop] @ rows[:, :, start:]

    def whole(self) -> Tensor:
        """Returns the whole matrices, shape (matrices, n, n)."""
        found = self.blocks[0].new_empty(self.shape)
        for block, (start, stop) in zip(self.blocks, blocks_of(self.shape[2]), strict=True):
            size = stop - start
            square, right = block[:, :, :size], block[:, :, size:]
            found[:, start:stop, start:stop] = square.triu() + square.triu(1).transpose(1, 2)
            found[:, start:stop, stop:] = right
            found[:, stop:, start:stop] = right.transpose(1, 2)
        return found


class LowerTriangle:
    """A lower triangular matrix, of which what is on the diagonal and below is held.

    Args:
        whole: Shape (n, n); not kept.
    """

    def __init__(self, whole: Tensor) -> None:
        self._width = len(whole)
        self._blocks = [
            whole[start:, start:stop].clone(memory_format=torch.contiguous_format)
            for start, stop in blocks_of(self._width)
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(block.nbytes for block in self._blocks)

    def leading(self, size: int) -> Tensor:
        """Returns the first rows and columns, zeros above the diagonal."""
        found = self._blocks[0].new_zeros(size, size)
        for block, (start, stop) in zip(self._blocks, blocks_of(self._width), strict=True):
            if start < size:
                found[start:, start:stop] = block[: size - start, : size - start]
        return found

    def transposed_times(self, right: Tensor) -> Tensor:
        """Returns the product of the transposed matrix with another, shape (n, m)."""
        spans = zip(self._blocks, blocks_of(self._width), strict=True)
        return torch.cat([block.mT @ right[start:] for block, (start, _) in spans])

    def rows(self, index: Tensor) -> Tensor:
        """Returns whole rows."""
        found = self._blocks[0].new_zeros(len(index), self._width)
        for block, (start, stop) in zip(self._blocks, blocks_of(self._width), strict=True):
            has = index >= start
            found[has, start:stop] = block.index_select(0, index[has] - start)
        return found


def blocks_of(width: int) -> Iterator[tuple[int, int]]:
    """Yields where blocks of columns begin and end."""
    for start in range(0, width, _BLOCK):
        yield start, min(start + _BLOCK, width)


def upper_entries(whole: Tensor) -> Tensor:
    """Returns what is on the diagonal of square matrices and above, shape (..., entries)."""
    width = whole.shape[-1]
    return whole[..., _is_upper(width).to(whole.device)]


def from_upper_entries(entries: Tensor, width: int) -> Tensor:
    """Returns upper triangular matrices of such entries, shape (..., n, n)."""
    found = entries.new_zeros(*entries.shape[:-1], width, width)
    found[..., _is_upper(width).to(entries.device)] = entries
    return found


def _is_upper(width: int) -> Tensor:
    return torch.ones(width, width, dtype=torch.bool).triu()
