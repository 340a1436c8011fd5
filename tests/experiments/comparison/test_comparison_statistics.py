"""Statistics over all tasks: against direct formulas, and the same for equal inputs."""

from __future__ import annotations

import importlib.util
import math

import numpy as np
import pytest
import scipy.stats

from amc_compress.comparison.statistics import statistics
from amc_compress.comparison.statistics.statistics import (
    aggregates,
    improvement,
    improvements,
    performance_profiles,
)
from amc_env import MissingDependencyError

QUICK = 200


@pytest.fixture
def scores() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {"a": rng.normal(0.5, 0.2, (5, 3)), "b": rng.normal(0.7, 0.2, (4, 3))}


def test_aggregates_are_their_formulas(scores):
    values = aggregates(scores, resamples=QUICK)
    for agent, matrix in scores.items():
        means = matrix.mean(axis=0)
        expected = {
            "iqm": scipy.stats.trim_mean(matrix, 0.25, axis=None),
            "median": np.median(means),
            "mean": means.mean(),
            "optimality_gap": 1.0 - np.minimum(matrix, 1.0).mean(),
        }
        assert {k: v.estimate for k, v in values[agent].items()} == pytest.approx(expected)


def test_interquartile_mean_by_hand():
    matrix = np.array([[0.0, 0.2], [0.4, 0.6], [0.8, 1.0], [9.0, -9.0]])
    # Sorted: -9, 0 | 0.2, 0.4, 0.6, 0.8 | 1, 9.
    value = aggregates({"a": matrix}, resamples=QUICK)["a"]["iqm"]
    assert value.estimate == pytest.approx(0.5)


def test_intervals_hold_their_estimates_and_narrow_with_more_seeds():
    rng = np.random.default_rng(1)
    few, many = rng.normal(size=(5, 4)), rng.normal(size=(80, 4))
    values = aggregates({"few": few, "many": many}, resamples=QUICK)
    for agent in ("few", "many"):
        assert values[agent]["mean"].low < values[agent]["mean"].estimate
        assert values[agent]["mean"].estimate < values[agent]["mean"].high
    widths = {a: values[a]["mean"].high - values[a]["mean"].low for a in values}
    assert widths["many"] < widths["few"] / 2


def test_interval_of_the_mean_is_that_of_a_stratified_bootstrap_written_out():
    matrix = np.random.default_rng(2).normal(size=(6, 3)) + np.array([0.0, 10.0, 20.0])
    value = aggregates({"a": matrix}, seed=0, resamples=4000)["a"]["mean"]
    rng = np.random.default_rng(3)
    means = [
        np.mean([rng.choice(column, len(column)).mean() for column in matrix.T])
        for _ in range(4000)
    ]
    assert [value.low, value.high] == pytest.approx(np.quantile(means, [0.025, 0.975]), abs=0.05)


def test_improvement_is_mann_whitneys_u_and_rliables_own(scores):
    from rliable import metrics

    x, y = np.round(scores["a"], 1), np.round(scores["b"], 1)  # with ties
    per_task = [
        scipy.stats.mannwhitneyu(x[:, i], y[:, i]).statistic / (len(x) * len(y)) for i in range(3)
    ]
    assert improvement(x, y) == pytest.approx(np.mean(per_task))
    assert improvement(x, y) == pytest.approx(metrics.probability_of_improvement(x, y))


def test_improvement_by_hand_counts_ties_half():
    x, y = np.array([[1.0], [2.0]]), np.array([[1.0], [0.0]])
    # 1 = 1, 1 > 0, 2 > 1, 2 > 0.
    assert improvement(x, y) == pytest.approx(3.5 / 4)


def test_improvements_of_both_directions_add_up_to_one(scores):
    values = improvements(scores, resamples=QUICK)
    there, back = values["a", "b"], values["b", "a"]
    assert there.estimate + back.estimate == pytest.approx(1.0)
    assert (there.low + back.high, there.high + back.low) == pytest.approx((1.0, 1.0))
    assert there.low <= there.estimate <= there.high


def test_profiles_are_the_shares_above_the_thresholds():
    matrix = np.array([[0.1, 0.2], [0.3, 0.4]])
    thresholds = np.array([0.0, 0.1, 0.25, 0.4])
    profile = performance_profiles({"a": matrix}, thresholds, resamples=QUICK)["a"]
    assert profile.share.tolist() == [1.0, 0.75, 0.5, 0.0]
    assert np.all(profile.low <= profile.share)
    assert np.all(profile.share <= profile.high)


def test_equal_scores_and_seeds_give_equal_intervals(scores):
    first = (aggregates(scores, resamples=QUICK), improvements(scores, resamples=QUICK))
    np.random.rand(7)  # noqa: NPY002
    assert first == (aggregates(scores, resamples=QUICK), improvements(scores, resamples=QUICK))
    other = aggregates(scores, seed=1, resamples=QUICK)
    assert other["a"]["iqm"].estimate == first[0]["a"]["iqm"].estimate
    assert other["a"]["iqm"].low != first[0]["a"]["iqm"].low


def test_global_randomness_is_not_touched(scores):
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    aggregates(scores, resamples=QUICK)
    assert np.array_equal(before, np.random.get_state()[1])  # noqa: NPY002


def test_other_agents_do_not_change_an_agents_interval(scores):
    alone = aggregates({"b": scores["b"]}, resamples=QUICK)["b"]
    assert alone == aggregates(scores, resamples=QUICK)["b"]


def test_one_seed_has_no_intervals():
    one = {"a": np.array([[0.5, 0.7]]), "b": np.array([[0.4, 0.6]])}
    assert math.isnan(aggregates(one)["a"]["iqm"].low)
    assert aggregates(one)["a"]["mean"].estimate == pytest.approx(0.6)
    assert math.isnan(improvements(one)["a", "b"].high)
    assert improvements(one)["a", "b"].estimate == 1.0
    assert np.isnan(performance_profiles(one, np.array([0.0]))["a"].low).all()


def test_scores_that_never_vary_have_intervals_without_width():
    flat = {"a": np.full((5, 2), 0.7), "b": np.full((5, 2), 0.7)}
    value = aggregates(flat, resamples=QUICK)["a"]["iqm"]
    assert (value.low, value.high) == pytest.approx((0.7, 0.7))
    tie = improvements(flat, resamples=QUICK)["a", "b"]
    assert (tie.low, tie.estimate, tie.high) == (0.5, 0.5, 0.5)


def test_missing_rliable_is_an_install_line(monkeypatch, scores):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "rliable" else found(name)
    )
    for function in (
        statistics.require_rliable,
        lambda: aggregates(scores),
        lambda: improvements(scores),
        lambda: performance_profiles(scores, np.zeros(1)),
    ):
        with pytest.raises(MissingDependencyError, match=r'pip install "amc-compress\[compare\]"'):
            function()
