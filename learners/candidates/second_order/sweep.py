"""Column by column over a layer's inputs: each is fixed, and those behind it take up the error.

The optimal brain surgeon for ``||X W^T - X W'^T||^2`` (Hassibi and Stork 1993) with two shortcuts:
all outputs fix their inputs in the same order, so that they share the inverse of ``H = X^T X``, and
the inverses of what is left of it are rows of one Cholesky factor ``U``, ``H^-1 = U^T U``:

    e = (w_i - q_i) / U_ii,    w_j <- w_j - e U_ij    for all j > i

What ``q_i`` is makes the algorithm: the nearest value of a grid (GPTQ, Frantar et al. 2022,
2210.17323, Algorithm 1), zero where the weight goes (SparseGPT, Frantar and Alistarh 2023,
2301.00774, Algorithm 1), or both at once (there, section 3.5). Updates of later blocks of columns
are gathered ("lazy").
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from amc_compress.learners.candidates.moments.nested import dampings, factorised

BLOCK = 128
"""Columns whose updates of later ones are gathered, as in both papers."""

DAMPING = 0.01
"""Added to the diagonal, relative to its mean, as in both papers."""

Fit = Callable[[Tensor, slice], tuple[Tensor, Tensor, Tensor]]
"""``weights (conv groups, rows, columns), their columns -> step, low, high``, each (conv groups,
rows)."""


@dataclass
class Grid:
    """The values that weights may take: ``step * k`` for integers ``low <= k <= high``.

    Args:
        step: Of every weight, shape (conv groups, columns, rows).
        low: Smallest integer, likewise.
        high: Largest integer, likewise.
        fit: Finds the grid of a piece of columns once the sweep has come to it, from the weights
            as they are then; ``None`` keeps what is given.
        piece: Columns that are fitted together.
    """

    step: Tensor
    low: Tensor
    high: Tensor
    fit: Fit | None = None
    piece: int = 0

    def ordered(self, order: Tensor) -> Grid:
        """Returns the grid of columns in another order."""
        step, low, high = (_ordered(x, order) for x in (self.step, self.low, self.high))
        return Grid(step, low, high)

    def fit_to(self, weight: Tensor, piece: slice) -> None:
        """Fits the grid of a piece of columns, in place.

        Args:
            weight: Of the piece as it is now, shape (conv groups, columns, rows).
            piece: Its columns.
        """
        assert self.fit is not None, "a grid that is not fitted"
        found = self.fit(weight.transpose(1, 2), piece)
        for held, values in zip((self.step, self.low, self.high), found, strict=True):
            held[:, piece] = values.unsqueeze(1)

    def nearest(self, column: Tensor, place: int) -> Tensor:
        """Returns the nearest value of every weight of a column, shape (conv groups, rows)."""
        step = self.step[:, place]
        codes = (column * (1.0 / step)).round_()
        return torch.minimum(torch.maximum(codes, self.low[:, place]), self.high[:, place]) * step


@dataclass(frozen=True)
class Zeros:
    """Which weights stay, chosen while the sweep goes on.

    Args:
        period: Columns that are chosen together.
        choose: ``(first column, loss of every weight)`` -> which stay, both of shape (conv groups,
            columns, rows). The loss is ``w^2 / [H^-1]_ii``: what the outputs lose if that weight
            alone becomes zero, and the weights behind it take up what they can.
    """

    period: int
    choose: Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Swept:
    """What a sweep ends with, columns in their own order.

    Attributes:
        weight: Shape (conv groups, rows, columns).
        stays: Which weights were not chosen to be zero, likewise; all without ``zeros``.
        loss: ``||X (W - W')^T||^2`` and the damping times ``||W - W'||^2``, per conv group.
    """

    weight: Tensor
    stays: Tensor
    loss: Tensor


def sweep(
    weight: Tensor,
    gram: Tensor,
    *,
    grid: Grid | None = None,
    zeros: Zeros | None = None,
    stays: Tensor | None = None,
    order: Tensor | None = None,
    damping: float = DAMPING,
    block: int = BLOCK,
) -> Swept:
    """Fixes the weights of a layer column by column.

    Args:
        weight: Shape (conv groups, rows, columns).
        gram: ``X^T X``, shape (conv groups, columns, columns).
        grid: What weights are rounded to, in the order of the columns; a fitted one is fitted in
            place. ``None`` rounds nothing.
        zeros: Chooses what becomes zero.
        stays: Weights that are not zero already, shape of ``weight``; the others remain zero.
        order: In which columns are fixed, shape (conv groups, columns); their own if ``None``. The
            grid then is not fitted on the way.
        damping: Relative to the mean diagonal of ``gram``.
        block: Columns between two updates of all later ones.
    """
    if order is not None:
        weight = weight.gather(2, order.unsqueeze(1).expand_as(weight))
        gram = _ordered(_ordered(gram, order).transpose(1, 2), order)
        grid = None if grid is None else grid.ordered(order)
        stays = None if stays is None else stays.gather(2, order.unsqueeze(1).expand_as(stays))
    columns = weight.transpose(1, 2).clone(memory_format=torch.contiguous_format)
    kept = torch.ones_like(columns, dtype=torch.bool)
    if stays is not None:
        kept &= stays.transpose(1, 2)
    upper = inverse_factor(gram, damping)
    loss = weight.new_zeros(len(weight))
    asked = [x for x in (zeros and zeros.period, grid and grid.fit and grid.piece) if x]
    for start, stop in blocks(columns.shape[1], block, asked):
        _sweep_block(columns, upper, kept, slice(start, stop), grid, zeros, loss)
    if order is not None:
        back = order.argsort(1)
        columns, kept = _ordered(columns, back), _ordered(kept, back)
    return Swept(columns.transpose(1, 2), kept.transpose(1, 2), loss)


def _sweep_block(
    columns: Tensor,
    upper: Tensor,
    kept: Tensor,
    span: slice,
    grid: Grid | None,
    zeros: Zeros | None,
    loss: Tensor,
) -> None:
    """Fixes the columns of one block in place, and then updates all behind it."""
    errors = torch.empty_like(columns[:, span])
    for place in range(span.start, span.stop):
        if zeros is not None and place % zeros.period == 0:
            _choose(columns, upper, kept, place, zeros)
        if grid is not None and grid.fit is not None and place % grid.piece == 0:
            piece = slice(place, min(place + grid.piece, columns.shape[1]))
            grid.fit_to(columns[:, piece] * kept[:, piece], piece)
        now = columns[:, place]
        fixed = now if grid is None else grid.nearest(now, place)
        fixed = fixed * kept[:, place]
        error = (now - fixed) / upper[:, place, place].unsqueeze(1)
        columns[:, place] = fixed
        rest = slice(place + 1, span.stop)
        columns[:, rest] -= upper[:, place, rest].unsqueeze(2) * error.unsqueeze(1)
        errors[:, place - span.start] = error
    loss += errors.square().sum((1, 2))
    if span.stop < columns.shape[1]:
        behind = upper[:, span, span.stop :].transpose(1, 2)
        columns[:, span.stop :].baddbmm_(behind, errors, alpha=-1.0)


def _choose(columns: Tensor, upper: Tensor, kept: Tensor, start: int, zeros: Zeros) -> None:
    stop = min(start + zeros.period, columns.shape[1])
    scale = upper.diagonal(dim1=1, dim2=2)[:, start:stop].unsqueeze(2)
    lost = (columns[:, start:stop] / scale).square_()
    kept[:, start:stop] &= zeros.choose(start, lost * kept[:, start:stop])


def inverse_factor(gram: Tensor, damping: float = DAMPING) -> Tensor:
    """Returns ``U``, upper triangular, with ``(G + lambda I)^-1 = U^T U``, per conv group.

    With the columns reversed the Cholesky factor of ``G`` is upper triangular, ``G = R R^T``:
    ``U`` is its inverse.

    Args:
        gram: Shape (conv groups, n, n).
        damping: Relative to the mean diagonal; a hundredfold where rounding leaves no factor.
    """
    found = []
    for matrix in gram:
        turned = matrix.flip(0, 1)
        factor = factorised(turned, dampings(damping, turned))
        assert factor is not None, "a Gram matrix that no damping makes definite"
        unit = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        found.append(torch.linalg.solve_triangular(factor[0].flip(0, 1), unit, upper=True))
    return torch.stack(found)


def blocks(count: int, size: int, asked: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Yields the ends of blocks of columns, so that nothing asked for lies across one.

    A piece of columns that is looked at together has to be up to date as a whole: it is inside of
    a block, or begins with it.

    Args:
        count: Of columns.
        size: Of a block, at most.
        asked: Lengths of pieces, each from column 0 on.
    """
    start = 0
    while start < count:
        stop = min(start + size, count)
        while cut := [last for last in _last_pieces(stop, count, asked) if last > start]:
            stop = min(cut)
        yield start, stop
        start = stop


def _last_pieces(stop: int, count: int, asked: Sequence[int]) -> Iterator[int]:
    """Yields where pieces begin that lie across ``stop``."""
    for length in asked:
        last = (stop - 1) // length * length
        if stop < min(last + length, count):
            yield last


def by_importance(gram: Tensor) -> Tensor:
    """Returns the columns of the largest diagonal first ("act order"), (conv groups, n)."""
    return gram.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)


def _ordered(x: Tensor, order: Tensor) -> Tensor:
    """Puts what is along axis 1 of a tensor of three axes into another order."""
    return x.gather(1, order.unsqueeze(2).expand_as(x))
