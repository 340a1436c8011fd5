"""GPTQ's and SparseGPT's sweep against the papers' algorithm written out, slowly."""

from __future__ import annotations

import pytest
import torch
from support.once import copies
from torch import Tensor

from amc_compress.learners.candidates.second_order.sweep import (
    Grid,
    Zeros,
    blocks,
    by_importance,
    inverse_factor,
    sweep,
)

COLUMNS, ROWS = 24, 5


@copies
def problem(seed: int = 0, groups: int = 2) -> tuple[Tensor, Tensor]:
    """Weights (groups, rows, columns) and Gram matrices of correlated inputs, float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(groups, 200, COLUMNS, dtype=torch.float64, generator=generator)
    x = x + 0.8 * x.roll(1, 2) + 0.3
    weight = torch.randn(groups, ROWS, COLUMNS, dtype=torch.float64, generator=generator)
    return weight, x.transpose(1, 2) @ x


def symmetric(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three bits between the largest magnitudes of each row."""
    step = weight.abs().amax(-1) / 3
    return step, torch.full_like(step, -3.0), torch.full_like(step, 3.0)


def by_rows(weight: Tensor) -> Grid:
    found = (x.unsqueeze(1).expand(-1, weight.shape[2], -1) for x in symmetric(weight))
    step, low, high = (x.clone() for x in found)
    return Grid(step, low, high)


def slowly(weight, gram, order, fix):
    """One conv group: the brain surgeon of both papers with a new inverse after every column.

    ``fix(place, columns left, weights, inverse) -> values`` of the first of them, shape (rows,).
    """
    now, left = weight.clone(), list(order)
    damped = gram + 0.01 * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype)
    for place in range(len(order)):
        inverse = torch.linalg.inv(damped[left][:, left])  # row and column of the last one removed
        column = left[0]
        value = fix(place, left, now, inverse)
        error = (now[:, column] - value) / inverse[0, 0]
        now[:, left] -= error.unsqueeze(1) * inverse[0]
        now[:, column] = value
        left = left[1:]
    return now


def nearest(value: Tensor, grid: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    step, low, high = grid
    return (value / step).round().clamp(low, high) * step


@pytest.mark.parametrize("block", [1, 7, 128])
@pytest.mark.parametrize("ordered", [False, True])
def test_rounding_is_that_of_the_paper_column_by_column(block, ordered):
    weight, gram = problem()
    order = by_importance(gram) if ordered else None
    found = sweep(weight, gram, grid=by_rows(weight), order=order, block=block)
    for group in range(len(weight)):
        columns = range(COLUMNS) if order is None else order[group].tolist()
        scales = symmetric(weight[group])
        expected = slowly(
            weight[group],
            gram[group],
            columns,
            lambda _, left, now, __, scales=scales: nearest(now[:, left[0]], scales),
        )
        torch.testing.assert_close(found.weight[group], expected, rtol=0, atol=1e-12)
        assert torch.equal(
            (found.weight[group] / scales[0].unsqueeze(1)).round(),
            (expected / scales[0].unsqueeze(1)).round(),
        )
        lost = found.weight[group] - weight[group]
        damping = 0.01 * gram[group].diagonal().mean()
        error = ((lost @ gram[group]) * lost).sum() + damping * lost.square().sum()
        assert float(found.loss[group]) == pytest.approx(float(error), rel=1e-9)


@pytest.mark.parametrize("size", [4, 10])
@pytest.mark.parametrize("block", [8, 128])
def test_groups_take_their_scales_from_the_weights_as_they_are_by_then(size, block):
    weight, gram = problem(1)
    grid = by_rows(weight)
    grid.fit, grid.piece = lambda now, _: symmetric(now), size
    found = sweep(weight, gram, grid=grid, block=block)
    for group in range(len(weight)):
        scales = {}

        def fix(place, left, now, _, scales=scales):
            if place % size == 0:
                scales["now"] = symmetric(now[:, left[:size]])
            return nearest(now[:, left[0]], scales["now"])

        expected = slowly(weight[group], gram[group], range(COLUMNS), fix)
        torch.testing.assert_close(found.weight[group], expected, rtol=0, atol=1e-12)
    assert not torch.equal(grid.step, by_rows(weight).step)


@pytest.mark.parametrize("bits", [False, True])
@pytest.mark.parametrize(("period", "kept"), [(8, 12), (4, None)])
def test_pruning_is_that_of_the_paper_and_goes_with_rounding(period, kept, bits):
    """``kept`` weights of every eight columns and all rows, or two of each row's four columns."""
    weight, gram = problem(2)

    def choose(_: int, loss: Tensor) -> Tensor:
        flat = loss.transpose(1, 2)  # (groups, rows, columns)
        if kept is None:
            rank = flat.argsort(2, descending=True).argsort(2)
            return (rank < 2).transpose(1, 2)
        rank = flat.flatten(1).argsort(1, descending=True).argsort(1)
        return (rank < kept).view(flat.shape).transpose(1, 2)

    grid = by_rows(weight) if bits else None
    found = sweep(weight, gram, grid=grid, zeros=Zeros(period, choose), block=8)
    for group in range(len(weight)):
        stays = torch.zeros(ROWS, COLUMNS, dtype=torch.bool)
        scales = symmetric(weight[group])

        def fix(place, left, now, inverse, stays=stays, scales=scales):
            if place % period == 0:
                # [H^-1]_ii of a column once those before it are fixed: of the factor's diagonal.
                factor = torch.linalg.cholesky(inverse, upper=True).diagonal()
                columns = left[:period]
                loss = now[:, columns].square() / factor[:period].square()
                if kept is None:
                    best = loss.topk(2, 1).indices
                    stays[:, columns] = torch.zeros_like(loss, dtype=torch.bool).scatter(
                        1, best, True
                    )
                else:
                    least = loss.flatten().topk(kept).values.min()
                    stays[:, columns] = loss >= least
            value = now[:, left[0]] * stays[:, left[0]]
            return (nearest(value, scales) if bits else value) * stays[:, left[0]]

        expected = slowly(weight[group], gram[group], range(COLUMNS), fix)
        assert torch.equal(found.stays[group], stays)
        torch.testing.assert_close(found.weight[group], expected, rtol=0, atol=1e-11)


def test_zeros_that_are_there_stay_and_inputs_that_are_never_there_are_just_rounded():
    weight, gram = problem(3, 1)
    stays = torch.rand(weight.shape, generator=torch.Generator().manual_seed(0)) > 0.5
    gram[:, 3], gram[:, :, 3] = 0.0, 0.0
    grid = by_rows(weight * stays)
    found = sweep(weight * stays, gram, grid=grid, stays=stays).weight
    assert not found[~stays].any()
    expected = nearest((weight * stays)[0, :, 3], symmetric((weight * stays)[0]))
    torch.testing.assert_close(found[0, :, 3], expected)


def test_float32_is_near_and_the_factor_is_that_of_the_inverse():
    weight, gram = problem(4)
    upper = inverse_factor(gram)
    damped = gram + 0.01 * torch.diag_embed(
        gram.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).expand(-1, COLUMNS)
    )
    torch.testing.assert_close(upper.transpose(1, 2) @ upper, torch.linalg.inv(damped))
    assert torch.equal(upper, upper.triu())
    exact = sweep(weight, gram, grid=by_rows(weight))
    found = sweep(weight.float(), gram.float(), grid=by_rows(weight.float()))
    torch.testing.assert_close(found.loss, exact.loss.float(), rtol=1e-3, atol=0)


def test_no_piece_of_columns_lies_across_the_end_of_a_block():
    for count, size, asked in ((100, 16, [6, 4]), (50, 8, [20]), (10, 128, [3]), (7, 4, [])):
        found = list(blocks(count, size, asked))
        assert [a for a, _ in found] + [count] == [0] + [b for _, b in found]
        assert all(0 < b - a <= size for a, b in found)
        for length in asked:
            for first in range(0, count, length):
                last = min(first + length, count)
                assert any(first == a or (a <= first and last <= b) for a, b in found)
