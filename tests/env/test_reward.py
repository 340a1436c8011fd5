import math

import pytest

from amc_env.reward import REWARDS, Result, accuracy_with_cost, resolve_reward

RESULT = Result(
    0.8, 0.9, {"macs": 1e6, "bytes": 100.0}, {"macs": 0.5, "bytes": 0.6}, {"bytes": 0.3}
)


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
    assert resolve_reward(lambda r: r.accuracy - 1.0)(RESULT) == pytest.approx(-0.2)
