"""Least squares on many subsets of a layer's columns, from one factorisation.

In the words of ``reconstruction``: ``A = G + lambda I`` with the columns in an order in which those
that are cut first come last, ``A = L L^T`` its Cholesky factor, and ``Z = L^T W^T``. Of the columns
``m`` that stay let ``p`` be those that the order begins with, without a gap, and ``q`` the others.

* The factor of the first columns of an order is the first part of the factor of all. So where there
  is no ``q``, ``W'^T = L_pp^-T Z_p``: one triangular solve. Else let ``T`` be the rows of ``L`` of
  ``q``, from column ``p`` on. ``S = T T^T`` is the Schur complement of ``p``, ``W'_q^T = S^-1 T Z``
  and ``W'_p^T = L_pp^-T (Z_p - L_qp^T W'_q^T)``, as in any factorisation by blocks.
* If the columns ``r`` from some place on are cut, the minimum of
  ``||X_m W'^T - X W^T||^2 + lambda ||W' - W_m||^2`` is ``||Z_r||^2 - lambda ||W_r||^2``: a row of
  ``Z`` holds no column before its own, so the errors of all cuts are sums of one list of numbers.
* Columns elsewhere have the same with the factor of the Schur complement of all others, which is
  the inverse of their block of ``A^-1`` (Hassibi and Stork 1993, "Second order derivatives for
  network pruning: optimal brain surgeon", for one column).

``lambda`` has to be the same for all subsets: its mean is over the diagonal of the whole ``G``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from multiprocessing.context import get_spawning_popen
from typing import Any

import torch
from torch import Tensor

from amc_compress.learners.candidates.moments.products import (
    LowerTriangle,
    UpperHalf,
    from_upper_entries,
    upper_entries,
)

Chain = Sequence[Tensor]
"""Columns that are cut together, step by step."""

_LEAST = 1e-12
_TRIES = 4
_SOLVED_AT_ONCE = 512
_EPS = 1e-7  # about the rounding of float32


def dampings(ridge: float, gram: Tensor) -> Iterator[float]:
    """Returns what is added to the diagonal of a Gram matrix, the usual first.

    Rounding of a wide float32 matrix can exceed the usual ridge.
    """
    return _growing(max(ridge * gram.diagonal().mean().item(), _LEAST))


def _growing(damping: float) -> Iterator[float]:
    for _ in range(_TRIES):
        yield damping
        damping *= 100.0


def factorised(matrix: Tensor, added: Iterable[float]) -> tuple[Tensor, float] | None:
    """Returns the Cholesky factor of the matrix with the first damping that makes it definite.

    Args:
        matrix: Symmetric, shape (n, n); it is the same afterwards.
        added: To the diagonal, one after the other.

    Returns:
        With the damping that was taken; None if there is no factor with any.
    """
    diagonal = matrix.diagonal().clone()
    try:
        for damping in added:
            matrix.diagonal().copy_(diagonal).add_(damping)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if not info.item():
                return factor, damping
    finally:
        matrix.diagonal().copy_(diagonal)
    return None


class NestedLeastSquares:
    """The factor of one Gram matrix along an order of its columns.

    Args:
        gram: ``G``, shape (n, n), or half of it; not kept. Of a half, half of the factor is held.
        order: The columns, those that are cut first last, shape (n,).
        ridge: Relative to the mean diagonal of ``G``.

    Attributes:
        damping: ``lambda``.
    """

    damping: float

    def __init__(self, gram: Tensor | UpperHalf, order: Tensor, ridge: float) -> None:
        is_half = isinstance(gram, UpperHalf)
        whole = gram.whole()[0] if isinstance(gram, UpperHalf) else gram
        self.order = order = order.to(whole.device)
        self.place = torch.empty_like(order)
        self.place[order] = torch.arange(len(order), device=order.device)
        added = list(dampings(ridge, whole))
        whole = whole.index_select(0, order)
        found = factorised(whole.index_select(1, order), added)
        self.is_solved = found is not None
        if found is not None:
            factor, self.damping = found
            del found, whole
            # A solve is faster by half than by columns.
            self._factor = LowerTriangle(factor) if is_half else factor.contiguous()

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the half of the factor that is zero."""
        state = dict(vars(self))
        if self.is_solved and get_spawning_popen() is None and isinstance(self._factor, Tensor):
            del state["_factor"]
            state["half"] = upper_entries(self._factor.mT)
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        half = state.pop("half", None)
        vars(self).update(state)
        if half is not None:
            self._factor = from_upper_entries(half, len(self.order)).mT.contiguous()

    @property
    def nbytes(self) -> int:
        """Bytes of its factor."""
        return self._factor.nbytes if self.is_solved else 0

    def gram(self) -> Tensor:
        """Returns ``G``, up to rounding, with its columns where they were."""
        factor = self._leading(len(self.order))
        product = factor @ factor.mT
        product.diagonal().sub_(self.damping)
        return product.index_select(0, self.place).index_select(1, self.place)

    def right(self, weight: Tensor) -> Tensor:
        """Returns ``Z``, shape (n, outputs), of a weight (outputs, n)."""
        ordered = weight.T.index_select(0, self.order)
        if isinstance(self._factor, Tensor):
            return self._factor.mT @ ordered
        return self._factor.transposed_times(ordered)

    def energy(self, right: Tensor, weight: Tensor) -> float:
        """Returns ``||X W^T||^2`` of a weight (outputs, n) and its ``Z``."""
        own = weight.double().square().sum()
        return float(right.double().square().sum() - self.damping * own)

    def solve(self, columns: Tensor, right: Tensor) -> Tensor | None:
        """Returns ``W'^T``, shape (columns that stay, outputs).

        Args:
            columns: Those that stay, in any order.
            right: ``Z`` of the outputs that stay.

        Returns:
            None if rounding leaves no factor of the columns ``q``.
        """
        places, where = self.place.index_select(0, columns).sort()
        first = int((places == torch.arange(len(places), device=places.device)).sum())
        rest = places[first:]
        solved = right.new_empty(len(places), right.shape[1])
        top = right[:first]
        if len(rest):
            rows = self._rows(rest)
            below = rows[:, first:]
            factor = factorised(below @ below.mT, [0.0, *_growing(self.damping)])
            if factor is None:
                return None
            solved[first:] = torch.cholesky_solve(below @ right[first:], factor[0])
            top = top - rows[:, :first].mT @ solved[first:]
        solved[:first] = _solved_from_below(self._leading(first).mT, top)
        unsorted = torch.empty_like(solved)
        unsorted[where] = solved
        return unsorted

    def errors(
        self, chains: Sequence[Chain], weight: Tensor, rows: Tensor | None = None
    ) -> list[Tensor] | None:
        """Returns what is lost after each step of some chains of cuts, each from the whole layer.

        Args:
            chains: Of the columns that are cut together, the first ones first.
            weight: Of the outputs whose squared errors are summed, shape (outputs, n).
            rows: What of the outputs counts in their place, shape (any number, outputs).

        Returns:
            Per chain the minimum of what the fit minimises, shape (steps,), float64; None if
            rounding leaves no factor.
        """
        if not self.is_solved:
            return None
        if rows is not None:
            weight = _fewer(rows) @ weight
        blocks = [[self._places(step) for step in reversed(steps)] for steps in chains]
        elsewhere = [torch.cat(b) for b in blocks if not self._is_last(torch.cat(b))]
        first = min((int(places.min()) for places in elsewhere), default=len(self.order))
        factor = self._leading(len(self.order))
        inverse = torch.cholesky_inverse(factor[first:, first:]) if elsewhere else None
        found = []
        for parts in blocks:
            places = torch.cat(parts)
            columns = weight.T.index_select(0, self.order.index_select(0, places))
            right = self._right_of(places, columns, factor, first, inverse)
            if right is None:
                return None
            lost = right.double().square().sum(1) - self.damping * columns.double().square().sum(1)
            sums = torch.stack([x.sum() for x in torch.split(lost, [len(b) for b in parts])])
            found.append(sums.flip(0).cumsum(0).clamp(min=0.0))
        return found

    def _leading(self, size: int) -> Tensor:
        """Returns the first rows and columns of the factor."""
        factor = self._factor
        return factor[:size, :size] if isinstance(factor, Tensor) else factor.leading(size)

    def _rows(self, places: Tensor) -> Tensor:
        factor = self._factor
        if isinstance(factor, Tensor):
            return factor.index_select(0, places)
        return factor.rows(places)

    def _places(self, columns: Tensor) -> Tensor:
        return self.place.index_select(0, columns.to(self.place.device)).sort().values

    def _is_last(self, places: Tensor) -> bool:
        start = len(self.order) - len(places)
        return torch.equal(places, torch.arange(start, len(self.order), device=places.device))

    def _right_of(
        self, places: Tensor, weight: Tensor, factor: Tensor, first: int, inverse: Tensor | None
    ) -> Tensor | None:
        """Returns ``Z`` of some columns, as if all others came before them.

        Args:
            places: Of the columns.
            weight: Of the columns, shape (columns, rows).
            factor: The whole one.
            first: The place from which on the inverse is known.
            inverse: Of the Schur complement of the columns before that place.
        """
        if inverse is None or self._is_last(places):
            start = len(self.order) - len(places)
            return factor[start:, start:].mT @ weight
        index = (places - first).flip(0)
        block = inverse.index_select(0, index).index_select(1, index)
        found = factorised(block, [0.0, *_growing(_EPS * block.diagonal().mean().item())])
        if found is None:
            return None
        # With the columns reversed the factor is upper triangular, U U^T; the complement's is U^-T.
        upper: Tensor = torch.linalg.solve_triangular(found[0].flip(0, 1), weight, upper=True)
        return upper


def _solved_from_below(upper: Tensor, right: Tensor) -> Tensor:
    """Solves an upper triangular system by halves.

    ``solve_triangular`` copies a part of a matrix, a quarter of the time, and takes a third more
    for a product than a matrix product does; here it only sees small parts.

    Args:
        upper: Shape (n, n).
        right: Shape (n, any number).
    """
    size = len(upper)
    if size <= _SOLVED_AT_ONCE:
        solved: Tensor = torch.linalg.solve_triangular(upper, right, upper=True)
        return solved
    half = size // 2
    below = _solved_from_below(upper[half:, half:], right[half:])
    above = torch.addmm(right[:half], upper[:half, half:], below, alpha=-1.0)
    return torch.cat((_solved_from_below(upper[:half, :half], above), below))


def _fewer(matrix: Tensor) -> Tensor:
    """Returns as few rows as give the same ``R^T R``."""
    return matrix if len(matrix) <= matrix.shape[1] else torch.linalg.qr(matrix, mode="r").R
