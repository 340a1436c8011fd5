"""How many threads torch uses, for a while; torch itself is not needed here."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amc_env.validation.checks import check_threads


@contextmanager
def limited_threads(threads: int | None) -> Iterator[None]:
    """Runs a block with that many threads of torch, if it has been imported.

    Several processes that share the cores of a machine lose more than half of their speed to
    spinning OpenMP threads, and on small networks a second thread gains little. (threadpoolctl
    does not see the linear algebra that is compiled into torch.)

    Args:
        threads: How many; ``None`` leaves the setting alone.

    Raises:
        ArgumentError: If it is no number of threads that a machine can have.
    """
    count = None if threads is None else check_threads(threads)
    torch: Any = sys.modules.get("torch")
    if count is None or torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
