import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from amc_env.reward import REWARDS, Result, accuracy_with_cost, resolve_reward

RESULT = Result(
    0.8, 0.9, {"macs": 1e6, "bytes": 100.0}, {"macs": 0.5, "bytes": 0.6}, {"bytes": 0.3}, 1.0
)

numbers = st.floats(allow_nan=False, allow_infinity=False)
shares = st.floats(0.0, 1.0)
ratios = st.floats(1e-3, 1.0)
bests = st.sampled_from([None, 0.0, 1.0])


def result_of(score, original, best=None, ratio=0.5, target=0.3):
    costs = ("macs", "bytes", "latency", "bops")
    ratios, targets = dict.fromkeys(costs, ratio), dict.fromkeys(costs, target)
    return Result(score, original, dict.fromkeys(costs, 1e6 * ratio), ratios, targets, best)


def test_accuracy_is_the_proxy_accuracy():
    assert REWARDS["accuracy"](RESULT) == 0.8


def test_error_log_macs_is_amcs_formula():
    assert REWARDS["error_log_macs"](RESULT) == pytest.approx(-0.2 * math.log(1e6))


def test_size_reward_is_accuracy_times_a_power_of_cost_over_target():
    assert REWARDS["accuracy_size"](RESULT) == pytest.approx(0.8 * (0.6 / 0.3) ** -0.07)


def test_an_unbounded_cost_is_compared_with_the_original():
    assert accuracy_with_cost("macs", -1.0)(RESULT) == pytest.approx(0.8 / 0.5)


def test_a_missing_cost_is_named():
    with pytest.raises(ValueError, match="needs the cost 'latency'"):
        REWARDS["accuracy_latency"](RESULT)


def test_unknown_names_list_the_known_ones():
    with pytest.raises(ValueError, match=r"expected one of .*error_log_macs"):
        resolve_reward("nonsense")


def test_functions_are_taken_as_they_are():
    assert resolve_reward(lambda r: r.score - 1.0)(RESULT) == pytest.approx(-0.2)


@given(shares, shares, ratios, ratios)
def test_of_accuracies_rewards_are_what_they_were_before_there_were_scores(
    accuracy, original, ratio, target
):
    result = result_of(accuracy, original, 1.0, ratio, target)
    expected = {
        "accuracy": accuracy,
        "error_log_macs": -(1.0 - accuracy) * math.log(result.cost["macs"]),
        "accuracy_size": accuracy * float((ratio / target) ** -0.07),
        "accuracy_latency": accuracy * float((ratio / target) ** -0.07),
        "accuracy_bops": accuracy * float((ratio / target) ** -0.07),
        "haq": 0.1 * 100.0 * (accuracy - original),
    }
    assert {name: REWARDS[name](result) for name in expected} == expected  # bit for bit


@given(numbers, numbers, numbers, bests, ratios)
def test_the_better_of_two_scores_never_has_the_lower_reward(one, other, original, best, ratio):
    low, high = (result_of(s, original, best, ratio) for s in sorted((one, other)))
    for name, reward in REWARDS.items():
        assert reward(low) <= reward(high), name
        assert all(map(math.isfinite, (reward(low), reward(high)))), name


@pytest.mark.parametrize("original", [-20.0, -1e-6, 0.0, 1e-6, 0.9, 35.0])
@pytest.mark.parametrize("best", [None, 0.0, 1.0])
def test_rewards_tell_scores_apart_around_any_original_score(original, best):
    size = abs(original) or 1.0
    results = [
        result_of(original + step * size, original, best) for step in (-9, -2.5, -1, -0.1, 0, 0.1)
    ]
    for name, reward in REWARDS.items():
        found = [reward(result) for result in results]
        assert found == sorted(set(found)), name


@given(numbers, numbers, ratios, ratios)
def test_of_equal_scores_the_cheaper_plan_has_the_higher_reward(score, original, one, other):
    low, high = (result_of(score, original, None, ratio) for ratio in sorted((one, other)))
    for name in ("accuracy_size", "accuracy_bops"):
        assert REWARDS[name](low) >= REWARDS[name](high)


def test_relative_loss_is_a_share_of_the_original_whatever_its_sign():
    assert result_of(-30.0, -20.0).relative_loss == pytest.approx(0.5)
    assert result_of(10.0, 20.0).relative_loss == pytest.approx(0.5)
    assert result_of(-30.0, -20.0).error == pytest.approx(1.5)
    assert result_of(-30.0, -20.0, best=0.0).error == 30.0


def test_the_old_names_of_a_result_are_read_with_a_warning():
    with pytest.warns(DeprecationWarning, match="Use 'score' instead of 'accuracy'"):
        assert RESULT.accuracy == RESULT.score
    with pytest.warns(DeprecationWarning, match="Use 'original_score'"):
        assert RESULT.original_accuracy == RESULT.original_score
