"""Selections of two learners are compared choice by choice."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from amc_compress.benchmarks.learners.same_channels import shared_units
from amc_env import keep_ratio_decision


def _learner(order):
    decision = keep_ratio_decision("group", len(order), 1)
    return SimpleNamespace(
        decisions=(decision,), select=lambda _, count: torch.tensor(sorted(order[:count]))
    )


def test_choices_that_keep_all_channels_do_not_count():
    assert shared_units(_learner([3, 1, 0, 2]), _learner([3, 1, 0, 2])) == (3, 3, 1.0)


def test_shares_are_of_the_channels_that_stay():
    # Of one channel none is shared, of two both, of three {1, 2} only.
    same, total, share = shared_units(_learner([2, 1, 0, 3]), _learner([1, 2, 3, 0]))
    assert (same, total) == (1, 3)
    assert share == pytest.approx((0.0 + 1.0 + 2 / 3) / 3)
