"""Shipped records hold what the network really reaches, in float32 and in what is usual here."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from amc_compress.benchmarks.agents.record_check import differences
from amc_compress.comparison.tasks import Places
from amc_env.recorded_tasks.recorded_file import read_recorded


@pytest.mark.parametrize("precision", ["fp32", pytest.param("auto", marks=pytest.mark.slow)])
def test_recorded_accuracies_of_the_digits_come_out_again(precision):
    record = read_recorded(files("amc_env") / "recorded_tasks" / "digits-channels.npz")
    gaps = differences(record, Places(), 8, precision)
    assert gaps.shape == (8,)
    # Of 359 images: rounding may move one of them over the edge between two classes, in bf16 three.
    assert np.abs(gaps).max() <= (1.5 / 359 if precision == "fp32" else 0.01)
