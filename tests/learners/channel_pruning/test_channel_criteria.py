"""Criteria against formulas written out, the LASSO path against scikit-learn on the design."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import Lasso, lars_path
from torch import nn

from amc_compress.learners.candidates.input_moments import collect_statistics
from amc_compress.learners.channel_pruning.criteria import (
    CRITERIA,
    GroupContext,
    SlotView,
    make_criterion,
    rank_units,
)
from amc_compress.learners.channel_pruning.lasso import contribution_matrix, entry_order_scores

PRODUCER = torch.tensor([[1.0, 0.0], [0.0, -4.0], [2.0, 0.0]])
CONSUMER = torch.tensor([[3.0, -1.0], [0.5, 0.5], [-2.0, 2.0]])
GAMMA = torch.tensor([[0.1], [-0.9], [0.5]])


def group(**extra):
    slots = (
        SlotView("producer", "a", "weight", "Conv2d", PRODUCER),
        SlotView("per_channel", "bn", "weight", "BatchNorm2d", GAMMA),
        SlotView("per_channel", "bn", "bias", "BatchNorm2d", 10 * GAMMA),
        SlotView("consumer", "b", "weight", "Conv2d", CONSUMER),
    )
    return GroupContext("a", 3, slots, **extra)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("l1", [4.0, 1.0, 4.0]),
        ("l2", [10**0.5, 0.5**0.5, 8**0.5]),
        ("bn_scale", [0.1, 0.9, 0.5]),
        ("geometric_median", [17**0.5 + 1.0, 17**0.5 + 20**0.5, 1.0 + 20**0.5]),
    ],
)
def test_weight_criteria_equal_their_formula(name, expected):
    np.testing.assert_allclose(CRITERIA[name](group()).numpy(), expected, rtol=1e-6)


def test_taylor_is_the_mean_square_of_gate_gradients():
    gates = torch.tensor([[1.0, -2.0, 0.0], [3.0, 2.0, 1.0]])
    found = CRITERIA["taylor"](group(gate_gradients=lambda: gates))
    np.testing.assert_allclose(found.numpy(), [5.0, 4.0, 0.5])


def test_taylor_without_gradients_says_what_is_missing():
    with pytest.raises(ValueError, match="needs gradients"):
        CRITERIA["taylor"](group())


def test_random_depends_on_the_seed_alone():
    first, again, other = (CRITERIA["random"](group(seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_unread_groups_are_scored_by_what_writes_them():
    unread = GroupContext("a", 3, (SlotView("producer", "a", "weight", "Conv2d", PRODUCER),))
    assert CRITERIA["l1"](unread).tolist() == [1.0, 4.0, 2.0]
    assert CRITERIA["lasso"](unread).tolist() == [1.0, 4.0, 2.0]


def test_every_criterion_scores_every_unit_of_a_bare_group():
    bare = GroupContext("a", 3, (), gate_gradients=lambda: torch.zeros(1, 3))
    for name, criterion in CRITERIA.items():
        assert criterion(bare).shape == (3,), name


def test_ties_go_to_the_lower_index():
    assert rank_units(torch.tensor([1.0, 2.0, 1.0, 2.0])).tolist() == [1, 3, 0, 2]


def test_unknown_criterion_names_the_known_ones():
    with pytest.raises(ValueError, match="geometric_median"):
        make_criterion("magnitude")


def lasso_problem(groups=1):
    """A convolution on correlated channels, its design matrix Z and its target Y."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(60, 6, 5, 5, generator=generator)
    images[:, 3] = 0.8 * images[:, 0] + 0.4 * images[:, 3]
    conv = nn.Conv2d(6, 4, 3, padding=1, bias=False, groups=groups)
    with torch.no_grad():
        conv.weight.copy_(torch.randn(conv.weight.shape, generator=generator))
        parts = []
        for unit in range(6 // groups):
            alone = torch.zeros_like(images)
            alone[:, unit :: 6 // groups] = images[:, unit :: 6 // groups]
            parts.append(conv(alone).flatten())
    return conv, images, torch.stack(parts, 1).double().numpy()


@pytest.mark.parametrize("groups", [1, 2])
def test_contribution_matrix_is_the_gram_matrix_of_the_contributions(groups):
    conv, images, z = lasso_problem(groups)
    statistics = collect_statistics(conv, [images], [""], positions=10**6)[""]
    columns = torch.arange(6 // groups * 9).reshape(-1, 9)
    weight = conv.weight.detach().reshape(groups, 4 // groups, -1)
    found = contribution_matrix(weight, statistics.gram, columns)
    np.testing.assert_allclose(found.numpy(), z.T @ z, rtol=1e-4, atol=1e-2)


def test_entry_order_equals_lars_on_the_design_matrix():
    _, _, z = lasso_problem()
    y = z.sum(1)
    _, _, path = lars_path(z, y, method="lasso")
    first = [int(np.flatnonzero(row)[0]) for row in path]
    scores = entry_order_scores(torch.from_numpy(z.T @ z))
    assert rank_units(scores).tolist() == np.argsort(first, kind="stable").tolist()


def test_entry_order_equals_coordinate_descent_at_each_penalty():
    _, _, z = lasso_problem()
    y = z.sum(1)
    ranking = rank_units(entry_order_scores(torch.from_numpy(z.T @ z))).tolist()
    largest = np.abs(z.T @ y).max() / len(y)
    counts = set()
    for share in np.geomspace(0.999, 0.05, 60):
        beta = Lasso(alpha=share * largest, fit_intercept=False, tol=1e-8).fit(z, y).coef_
        chosen = set(np.flatnonzero(np.abs(beta) > 1e-9).tolist())
        counts.add(len(chosen))
        assert chosen == set(ranking[: len(chosen)])
    assert len(counts) >= 4


def test_units_without_contribution_come_last():
    form = torch.diag(torch.tensor([2.0, 0.0, 5.0, 0.0], dtype=torch.float64))
    assert rank_units(entry_order_scores(form)).tolist() == [2, 0, 1, 3]
    assert entry_order_scores(torch.zeros(3, 3, dtype=torch.float64)).tolist() == [0.0, 0.0, 0.0]
