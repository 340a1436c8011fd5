"""Isolates a search from process-wide generators and thread counts, and vice versa.

Stable-Baselines3 draws from the global generators of ``random``, NumPy and torch. A search seeds
them for itself, gives them back as it found them, and never lets the evaluation of a plan move
them: otherwise a resumed search, whose first evaluations come from a record, would see other random
numbers than the first run did.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from amc_env.support.threads import limited_threads


@contextmanager
def isolated_randomness() -> Iterator[None]:
    """Restores the global generators of ``random``, NumPy and torch (CPU) on the way out."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


@contextmanager
def one_thread() -> Iterator[None]:
    """Runs the block on one thread of torch and of every linear-algebra library that is loaded.

    Threads that wait for each other over matrices of a hundred rows are slower than one.
    """
    with limited_threads(1), threadpool_limits(1):
        yield
