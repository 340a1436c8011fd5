"""The benchmark of the environment's steps."""

from __future__ import annotations

import numpy as np

from amc_compress.benchmarks.speed.environment_steps import measure, parts


def test_every_column_has_a_rate():
    name, decisions, *rates = measure("joint", 2, 0.001)
    assert (name, decisions) == ("joint", "4")
    assert len(rates) == 5
    assert all(int(rate.replace(",", "")) > 0 for rate in rates)


def test_every_part_of_a_step_takes_some_time():
    rows = dict(parts("channels", 3, 0.001))
    assert [*rows][-1] == "whole step"
    assert all(np.isfinite(float(each)) for each in rows.values())
    assert float(rows["whole step"]) > 0
