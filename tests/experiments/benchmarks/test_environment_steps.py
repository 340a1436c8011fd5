"""The benchmark of the environment's steps."""

from __future__ import annotations

import pytest

from amc_compress.benchmarks.speed.environment_steps import measure, parts


@pytest.mark.parametrize("kind", ["channels", "joint"])
def test_every_column_has_a_rate(kind):
    name, decisions, *rates = measure(kind, 3, 0.001)
    assert name == kind
    assert int(decisions) == {"channels": 3, "joint": 7}[kind]
    assert all(int(rate.replace(",", "")) > 50 for rate in rates)


def test_the_parts_of_a_step_are_within_it():
    *rest, (name, whole) = parts("channels", 3)
    assert name == "whole step"
    assert all(-1.0 < float(each) < float(whole) for _, each in rest)
