"""Plans are stopped by a paired test, whose error rate is what it says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from amc_env.errors import ArgumentError
from amc_env.scores.stages import GROUPS, Measured, Race, Stages, best_race, group_end


@pytest.mark.parametrize("n", [8, 31, 120, 3000])
def test_stages_end_where_groups_do(n):
    ends = Stages().ends(n)
    assert ends[-1] == n
    assert list(ends) == sorted(set(ends))
    assert set(ends) <= {group_end(k, n) for k in range(GROUPS + 1)}
    if n >= GROUPS:
        assert ends == (group_end(8, n), group_end(16, n), n // 2, n)


@pytest.mark.parametrize("shares", [(), (0.5,), (0.5, 0.25, 1.0), (0.5, 0.5, 1.0)])
def test_shares_rise_to_all(shares):
    with pytest.raises(ArgumentError, match="rise to 1"):
        Stages(shares)


def test_a_race_is_the_one_sided_paired_test_of_students():
    rng = np.random.default_rng(0)
    for _ in range(50):
        best, ours = rng.normal(0.9, 0.05, GROUPS), rng.normal(0.88, 0.05, int(rng.integers(4, 64)))
        race = Race(float(best.mean()), tuple(best))
        p = stats.ttest_rel(ours, best[: len(ours)], alternative="less").pvalue
        assert race.is_lost(tuple(ours), 0.05) == (p < 0.05)
        estimate = best.mean() + (ours - best[: len(ours)]).mean()
        assert race.estimate(tuple(ours)) == pytest.approx(estimate)


def test_groups_without_a_score_and_too_few_of_them_lose_nothing():
    race = Race(0.9, (0.9,) * GROUPS)
    assert not race.is_lost((0.1, 0.1, 0.1), 0.05)
    assert not race.is_lost((0.1, None, 0.1, 0.1), 0.05)
    assert race.is_lost((0.1, None, 0.1, 0.1, 0.2), 0.05)
    assert not race.is_lost((), 0.05)


def test_a_plan_as_good_as_the_best_fails_a_look_as_often_as_the_risk_says():
    rng = np.random.default_rng(0)
    lost = 0
    for _ in range(4000):
        best, ours = rng.normal(size=(2, GROUPS))
        lost += Race(0.0, tuple(best)).is_lost(tuple(ours[:8]), 0.05)
    assert lost / 4000 == pytest.approx(0.05, abs=0.012)


def test_the_best_of_those_that_were_measured_in_groups_is_raced():
    stopped = Measured(0.99, 0.125, 12, 1)
    first, second = (Measured(0.8, 1.0, 96, 4, (0.8, x)) for x in (0.1, 0.2))
    assert best_race([stopped]) is None
    assert best_race([stopped, first, second]) == Race(0.8, (0.8, 0.1))
