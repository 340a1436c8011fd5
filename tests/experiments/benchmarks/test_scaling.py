"""The simulation of many workers: times as drawn, and no more work than there was time for."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest

from amc_compress.benchmarks.speed.scaling import drawn, of_service


def test_times_have_the_mean_and_the_variation_that_were_asked_for():
    times = np.array([*islice(drawn(2.0, 0.3), 20_000)])
    assert times.mean() == pytest.approx(2.0, rel=0.01)
    assert times.std() / times.mean() == pytest.approx(0.3, rel=0.03)
    assert [*islice(drawn(2.0, 0.0), 2)] == [2.0, 2.0]


def test_workers_do_no_more_than_their_time_allows():
    assert 0.1 < of_service(2, 4, 0.01, 0.0) <= 1.0
