"""Peaks of memory are those of the process that is measured."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from amc_compress.benchmarks.memory import peak_memory

_CHILD = """
from amc_compress.benchmarks.memory import peak_memory
before = peak_memory()
held = bytearray(40_000_000)
print(before, peak_memory())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_child_of_a_large_process_tells_its_own_peak():
    held = np.ones(300_000_000, dtype=np.uint8)
    assert peak_memory() > held.nbytes / 1e6
    command = [sys.executable, "-c", _CHILD]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    before, after = map(float, told.split())
    assert 5 < before < 150
    assert before + 39 < after < before + 60
