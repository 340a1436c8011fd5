"""Ranks, wins and real differences: by hand, against other libraries, and by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.stats
from support.selection import quick

from amc_compress.comparison.statistics.differences import differences, holm
from amc_compress.comparison.statistics.ranks import (
    balaji_allen_scores,
    expected_ranks,
    pairwise_wins,
    ranks_of_means,
)
from amc_compress.comparison.statistics.scores import Sample


def sample(*rewards: float, seeds: tuple[int, ...] | None = None, is_fixed: bool = False) -> Sample:
    return Sample(
        tuple(range(len(rewards))) if seeds is None else seeds,
        np.array(rewards, dtype=float),
        is_fixed=is_fixed,
    )


def test_ranks_of_means_by_hand():
    samples = {"a": sample(1, 3), "b": sample(2, 4), "c": sample(2, 2), "d": sample(0, 0)}
    # Means 2, 3, 2, 0: the second and third place are shared.
    assert ranks_of_means(samples) == {"a": 2.5, "b": 1.0, "c": 2.5, "d": 4.0}


def test_equal_means_share_a_rank_although_sums_are_rounded():
    samples = {"a": sample(0.1, 0.2, 0.3), "b": sample(0.3, 0.2, 0.1), "c": sample(0.2)}
    assert set(ranks_of_means(samples).values()) == {2.0}


def test_expected_ranks_are_the_mean_of_the_ranks_of_all_draws():
    samples = {"a": sample(1, 5), "b": sample(2, 2), "c": sample(2, 6)}
    ranks = [scipy.stats.rankdata([-x, -y, -z]) for x in (1, 5) for y in (2, 2) for z in (2, 6)]
    expected = dict(zip("abc", np.mean(ranks, axis=0).tolist(), strict=True))
    assert expected_ranks(samples) == pytest.approx(expected)


def test_pairwise_wins_by_hand_pair_equal_seeds_over_tasks():
    tasks = [
        {"a": sample(1, 2, 3), "b": sample(0, 2, 4)},  # a wins, tie, b wins
        {"a": sample(5, 5, seeds=(1, 7)), "b": sample(1, 1, seeds=(0, 7))},  # one common seed
    ]
    wins = pairwise_wins(tasks)
    assert (wins["a", "b"].won, wins["a", "b"].tied, wins["a", "b"].pairs) == (2, 1, 4)
    assert wins["a", "b"].share == pytest.approx(2.5 / 4)
    assert wins["a", "b"].share + wins["b", "a"].share == pytest.approx(1.0)


def test_agent_that_ran_once_meets_every_seed():
    wins = pairwise_wins([{"a": sample(1, 3, seeds=(4, 9)), "once": sample(2, is_fixed=True)}])
    assert (wins["once", "a"].won, wins["once", "a"].pairs) == (1, 2)


def test_agents_without_a_common_seed_never_met():
    assert pairwise_wins([{"a": sample(1, 2), "b": sample(1, 2, seeds=(5, 6))}]) == {}


def test_balaji_allen_statistic_is_z_scores_scaled_to_0_1_over_all_agents_and_seeds():
    tasks = [{"a": sample(1, 3), "b": sample(2, 5)}, {"a": sample(7, 7), "b": sample(7, 8)}]
    expected = {"a": [], "b": []}
    for task in tasks:
        z = scipy.stats.zscore(np.concatenate([task["a"].rewards, task["b"].rewards]))
        scaled = (z - z.min()) / (z.max() - z.min())
        expected["a"].append(scaled[:2].mean())
        expected["b"].append(scaled[2:].mean())
    assert balaji_allen_scores(tasks) == pytest.approx(
        {agent: np.mean(values) for agent, values in expected.items()}
    )
    # By hand: (0 + 2/4) / 2 and 0, (1/4 + 1) / 2 and 1/2.
    assert balaji_allen_scores(tasks) == pytest.approx({"a": 0.125, "b": 0.5625})


def test_balaji_allen_statistic_depends_on_who_else_takes_part():
    agents = {"a": sample(1, 2), "b": sample(2, 3)}
    alone = balaji_allen_scores([agents])["b"]
    assert balaji_allen_scores([{**agents, "c": sample(-100, 3)}])["b"] > alone


def test_tasks_on_which_all_rewards_are_equal_are_left_out_of_it():
    assert balaji_allen_scores([{"a": sample(1, 1), "b": sample(1, 1)}]) == {}


def test_difference_is_that_of_the_means_the_better_agent_first():
    (found,) = differences({"a": sample(1.0, 2.0, 3.0), "b": sample(4.0, 5.0, 9.0)})
    assert (found.better, found.worse) == ("b", "a")
    assert found.estimate == pytest.approx(4.0)
    assert found.low < found.estimate < found.high


def test_p_value_is_welchs():
    rng = np.random.default_rng(0)
    x, y, constant = rng.normal(size=5), rng.normal(1.0, 3.0, size=8), 0.5
    found = differences({"x": sample(*x), "y": sample(*y)})[0]
    assert found.p_value == pytest.approx(scipy.stats.ttest_ind(x, y, equal_var=False).pvalue)
    fixed = differences({"x": sample(*x), "c": sample(constant, is_fixed=True)})[0]
    assert fixed.p_value == pytest.approx(scipy.stats.ttest_1samp(x, constant).pvalue)


def test_interval_of_many_seeds_is_the_normal_one():
    rng = np.random.default_rng(1)
    x, y = rng.normal(1.0, 1.0, 400), rng.normal(0.0, 1.0, 400)
    (found,) = differences({"x": sample(*x), "y": sample(*y)})
    error = math.sqrt(x.var(ddof=1) / 400 + y.var(ddof=1) / 400)
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * error, rel=0.05)


def test_real_means_that_the_interval_excludes_zero():
    far = differences({"a": sample(1.0, 1.1, 1.2, 1.3), "b": sample(0.1, 0.2, 0.3, 0.4)})[0]
    near = differences({"a": sample(1.0, 2.0, 3.0, 4.0), "b": sample(1.1, 2.1, 2.9, 4.0)})[0]
    assert far.low > 0
    assert far.is_real
    assert near.low < 0 < near.high
    assert not near.is_real


@pytest.mark.parametrize("n", quick([3, 5, 10], 3))
@pytest.mark.parametrize("is_fixed", [False, True])
def test_equal_agents_are_rarely_called_different(n, is_fixed):
    rng = np.random.default_rng(2)
    alarms = 0
    for _ in range(400):
        other = sample(0.0, is_fixed=True) if is_fixed else sample(*rng.normal(size=n))
        alarms += differences({"a": sample(*rng.normal(size=n)), "b": other})[0].is_real
    # At most 5% are expected, three standard errors are 3%. Plain percentiles give 20% at n = 3
    # and 12% at n = 5.
    assert 0.01 < alarms / 400 < 0.08


def test_interval_is_the_wider_one_of_welchs_and_the_bootstraps_at_each_end():
    def against_zero(rewards: list[float]):
        (found,) = differences({"a": sample(*rewards), "0": sample(0.0, is_fixed=True)})
        return found, scipy.stats.ttest_1samp(rewards, 0.0).confidence_interval(0.95)

    found, welch = against_zero([1.0, 1.1, 1.1, 1.2, 6.0])
    assert found.low == pytest.approx(welch.low)
    # A bootstrap of skewed rewards reaches further up than the symmetric interval.
    found, welch = against_zero(np.exp(np.linspace(-3.0, 3.0, 40)).tolist())
    assert found.low == pytest.approx(welch.low)
    assert found.high > welch.high + 0.05


def test_holm_is_statsmodels_holm():
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p_values = [0.04, 0.001, 0.03, 0.2, 0.03]
    assert holm(p_values) == pytest.approx(multitest.multipletests(p_values, method="holm")[1])


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, math.nan, 0.9])[0] == 1.0
    assert math.isnan(holm([0.5, math.nan])[1])
    assert holm([]) == []


def test_correction_counts_the_pairs_that_are_compared():
    samples = {
        "a": sample(1.0, 1.2, 1.1), "b": sample(0.1, 0.3, 0.2), "c": sample(1.0, 1.3, 1.1),
    }  # fmt: skip
    everyone, to_a = differences(samples), differences(samples, reference="a")
    assert [{d.better, d.worse} for d in to_a] == [{"a", "b"}, {"a", "c"}]
    assert len(everyone) == 3
    smallest = min(d.p_value for d in everyone)
    assert min(d.adjusted_p_value for d in everyone) == pytest.approx(3 * smallest)
    assert min(d.adjusted_p_value for d in to_a) == pytest.approx(2 * min(d.p_value for d in to_a))


def test_one_seed_each_leaves_everything_unknown_and_nothing_real():
    (found,) = differences({"a": sample(1.0), "b": sample(2.0)})
    assert found.estimate == 1.0
    assert math.isnan(found.low)
    assert math.isnan(found.p_value)
    assert not found.is_real
    assert not found.holds_among_all


def test_deterministic_agents_differ_for_certain_or_not_at_all():
    certain, tie = (
        differences({"a": sample(0.7, 0.7, is_fixed=True), "b": sample(other, is_fixed=True)})[0]
        for other in (0.6, 0.7)
    )
    assert certain.is_real
    assert certain.low == certain.high == pytest.approx(0.1)
    assert certain.p_value == 0.0
    assert not tie.is_real
    assert tie.p_value == 1.0


def test_two_seeds_that_happen_to_agree_are_no_certainty():
    (found,) = differences({"a": sample(0.7, 0.7), "b": sample(0.6, 0.6)})
    # Of the 6 ways to deal two and two rewards, 2 are as far apart.
    assert found.p_value == pytest.approx(1 / 3)
    assert math.isnan(found.low)
    assert not found.is_real
    assert found.is_known


@pytest.mark.parametrize(("n", "is_fixed"), [(2, False), (3, False), (6, False), (6, True)])
def test_p_value_of_rewards_that_never_vary_is_that_of_an_exact_test(n, is_fixed):
    x, y = np.full(n, 0.75), np.full(n, 0.5)
    (found,) = differences(
        {"a": sample(*x), "b": sample(0.5, is_fixed=True) if is_fixed else sample(*y)}
    )
    exact = scipy.stats.permutation_test(
        (x - y,) if is_fixed else (x, y),
        np.mean if is_fixed else lambda a, b: np.mean(a) - np.mean(b),
        permutation_type="samples" if is_fixed else "independent",
        n_resamples=np.inf,
    )
    assert found.p_value == pytest.approx(exact.pvalue)
    assert found.is_real == (exact.pvalue < 0.05)


def test_many_seeds_that_agree_differ_from_others_and_a_tie_does_not():
    many = {"a": sample(*[0.7] * 20), "b": sample(*[0.6] * 20), "c": sample(*[0.7] * 20)}
    found = {(d.better, d.worse): d for d in differences(many)}
    assert found["a", "b"].holds_among_all
    assert found["a", "b"].low == pytest.approx(0.1)
    assert not found["a", "c"].is_real
    assert found["a", "c"].p_value == 1.0


def test_seeds_that_happen_to_agree_are_given_the_spread_of_the_other_agent():
    y = np.random.default_rng(0).normal(size=8)
    (fixed,) = differences({"a": sample(2.0, is_fixed=True), "b": sample(*y)})
    (agreeing,) = differences({"a": sample(2.0, 2.0), "b": sample(*y)})
    t = fixed.estimate / math.sqrt(y.var(ddof=1) * (1 / 2 + 1 / 8))
    assert agreeing.high - agreeing.low > 2 * (fixed.high - fixed.low)
    assert agreeing.p_value > 2 * scipy.stats.t.sf(t, 2 + 8 - 2)
    assert fixed.p_value == pytest.approx(scipy.stats.ttest_1samp(y, 2.0).pvalue)


def test_one_seed_of_an_agent_with_chance_is_not_compared_and_not_counted():
    samples = {"a": sample(0.7, 0.8, 0.9), "once": sample(0.1), "u": sample(0.2, is_fixed=True)}
    found = {(d.better, d.worse): d for d in differences(samples)}
    assert not found["a", "once"].is_known
    assert not found["u", "once"].is_known
    assert found["a", "u"].adjusted_p_value == found["a", "u"].p_value


def test_equal_inputs_give_equal_differences_whatever_the_order_of_agents_and_seeds():
    a, b = (0.5, 0.7, 0.6, 0.9), (0.4, 0.5, 0.3, 0.55)
    first = differences({"a": sample(*a), "b": sample(*b)}, seed=4)
    second = differences({"b": sample(*reversed(b)), "a": sample(*reversed(a))}, seed=4)
    assert first[0].estimate == pytest.approx(second[0].estimate)
    assert (first[0].low, first[0].high) == (second[0].low, second[0].high)
    other = differences({"a": sample(*a), "b": sample(*b)}, seed=5)
    assert other[0].estimate == first[0].estimate
