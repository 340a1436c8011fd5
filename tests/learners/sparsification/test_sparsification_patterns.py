"""Masks against loops that a reader can follow."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support.selection import examples

from amc_compress.learners.sparsification import Pattern


def weight(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@given(
    values=st.lists(st.integers(-3, 3), min_size=1, max_size=30),
    share=st.floats(0.0, 1.0),
)
@examples(50)
def test_exactly_the_largest_stay_and_the_first_of_equal_ones(values, share):
    keep = round(share * len(values))
    ordered = sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))
    mask = Pattern.parse("unstructured").mask(torch.tensor([values]).float(), keep)
    assert mask.nonzero()[:, 1].tolist() == sorted(ordered[:keep])


@pytest.mark.parametrize("shape", [(8, 12), (5, 3, 3, 3), (6, 1, 3, 3), (4, 4)])
@pytest.mark.parametrize("side", [2, 4])
def test_blocks_stay_by_their_mean_magnitude(shape, side):
    w = weight(*shape)
    matrix = w.reshape(shape[0], -1)
    rows, columns = matrix.shape
    blocks = {
        (i, j): matrix[i : i + side, j : j + side].abs()
        for i in range(0, rows, side)
        for j in range(0, columns, side)
    }
    best = sorted(blocks, key=lambda b: -blocks[b].mean().item())
    pattern = Pattern.parse(f"block{side}")
    kept = 0
    expected = torch.zeros_like(matrix, dtype=torch.bool)
    for i, j in best:
        kept += blocks[i, j].numel()
        expected[i : i + side, j : j + side] = True
        assert torch.equal(pattern.mask(w, kept), expected.view(shape))
        assert pattern.scores(w).reshape(rows, columns)[i, j] == pytest.approx(
            blocks[i, j].mean().item(), rel=1e-5
        )


def test_where_no_number_of_whole_blocks_fits_one_block_keeps_its_largest():
    w = torch.tensor([[4.0, 3.0, 1.0, 1.0], [2.0, 5.0, 1.0, 1.0]])
    mask = Pattern.parse("block2").mask(w, 6)
    assert mask.tolist() == [[True, True, True, True], [True, True, False, False]]
    assert Pattern.parse("block2").mask(w, 2).nonzero().tolist() == [[0, 0], [1, 1]]


@pytest.mark.parametrize(("name", "n", "m"), [("2:4", 2, 4), ("4:8", 4, 8), ("1:3", 1, 3)])
@pytest.mark.parametrize("kernel", [(), (3,), (3, 3)])
def test_n_of_every_m_inputs_stay_at_every_kernel_position(name, n, m, kernel):
    w = weight(5, 2 * m, *kernel)
    mask = Pattern.parse(name).mask(w, w.numel() * n // m)
    lines, masked = w.reshape(5, 2 * m, -1).abs(), mask.reshape(5, 2 * m, -1)
    for output in range(5):
        for position in range(lines.shape[2]):
            for start in (0, m):
                group = lines[output, start : start + m, position].tolist()
                best = sorted(range(m), key=lambda i: -group[i])[:n]
                found = masked[output, start : start + m, position].nonzero()[:, 0].tolist()
                assert found == sorted(best)


def test_on_its_way_n_falls_one_by_one_and_never_below_the_pattern():
    pattern, w = Pattern.parse("2:4"), weight(4, 8)
    kept = [int(pattern.mask(w, keep).sum()) for keep in (32, 28, 27, 24, 20, 19, 16, 5)]
    assert kept == [32, 32, 24, 24, 16, 16, 16, 16]


def test_an_incomplete_group_of_a_cut_layer_keeps_no_more_than_its_share():
    mask = Pattern.parse("2:4").mask(weight(3, 7, 2, 2), 42)
    assert mask[:, :4].sum(1).eq(2).all()
    assert mask[:, 4:].sum(1).eq(1).all()


def test_layers_of_other_widths_are_rejected_and_blocks_are_not():
    assert Pattern.parse("2:4").rejection(torch.Size((8, 3, 3, 3)))
    assert Pattern.parse("2:4").rejection(torch.Size((8, 4, 3, 3))) is None
    assert Pattern.parse("block4").rejection(torch.Size((8, 3, 3, 3))) is None


@pytest.mark.parametrize("name", ["unstructured", "block4", "block3"])
@pytest.mark.parametrize("size", [1, 9, 144, 36864])
def test_numbers_on_offer_rise_from_the_least_to_all(name, size):
    counts = Pattern.parse(name).counts(size, 0.05)
    assert counts[-1] == size
    assert list(counts) == sorted(set(counts))
    assert min(abs(counts[0] - 0.05 * size), size - counts[0]) <= 16  # a block of four
    assert len(counts) <= 200


def test_the_grid_of_single_weights_has_steps_of_half_a_percent():
    assert Pattern.parse("unstructured").counts(1000, 0.98) == (980, 985, 990, 995, 1000)
    assert Pattern.parse("block4").counts(1600, 0.97) == (1552, 1568, 1584, 1600)
    assert Pattern.parse("1:4").counts(16, 0.5) == (4, 16)


@pytest.mark.parametrize("text", ["", "block", "block0", "4:4", "4:2", "0:4", "2:4:8", "random"])
def test_other_patterns_are_rejected(text):
    with pytest.raises(ValueError, match="Unknown pattern"):
        Pattern.parse(text)


def test_a_group_that_is_the_only_one_keeps_a_weight():
    assert int(Pattern.parse("2:4").mask(torch.rand(5, 1), 1).sum()) == 5
