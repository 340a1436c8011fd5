"""Devices that are not there, and numbers of threads that no machine has."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from amc_compress.learners.numerics.precision import check_device
from amc_env.errors import ArgumentError
from amc_env.support.threads import limited_threads
from amc_env.validation.checks import MOST_THREADS


@pytest.mark.parametrize(
    "threads", [0, -1, MOST_THREADS + 1, 10**9, 2**63, 10**400, 1.5, "2", True]
)
def test_impossible_number_of_threads_is_rejected(threads: Any) -> None:
    before = torch.get_num_threads()
    with pytest.raises(ArgumentError, match="threads"), limited_threads(threads):
        pass
    assert torch.get_num_threads() == before


def test_most_threads_are_allowed() -> None:
    with limited_threads(MOST_THREADS):
        assert torch.get_num_threads() == MOST_THREADS


@pytest.mark.parametrize(
    "device", ["meta", "nonsense", "", "cuda:99", "xpu", "cpu:x", "x" * 9999, 2.5]
)
def test_device_that_is_not_there_is_rejected(device: Any) -> None:
    with pytest.raises(ValueError, match="Expected a device that computes") as caught:
        check_device(device)
    assert len(str(caught.value)) < 1000
