"""Learners that something happens to while they evaluate, in whatever process that is."""

from __future__ import annotations

import os
import resource
import signal
import time
from pathlib import Path
from typing import Any

import numpy as np


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def hang() -> None:
    time.sleep(60.0)


def run_out_of_memory() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, hard))
    try:
        np.ones(1 << 30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


DEEDS = {"kill": kill, "hang": hang, "memory": run_out_of_memory, "none": lambda: None}


class Accident:
    """Evaluates, but something happens to its process at one plan, so many times.

    Args:
        learner: Evaluates.
        place: A folder for notes about every evaluation; the processes count by it.
        kind: What happens.
        times: How often, from the fourth evaluation on.
        seconds: That every evaluation takes in addition.
    """

    def __init__(
        self, learner: Any, place: Path, kind: str = "none", times: int = 0, seconds: float = 0.0
    ) -> None:
        self._learner, self._place, self._seconds = learner, place, seconds
        self._kind, self._times = kind, times

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_learner"], name)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)

    def evaluate(self, plan: Any) -> Any:
        before = sorted(self._place.iterdir())
        self._place.joinpath(f"{len(before)}-{time.time_ns()}").touch()
        if 3 <= len(before) < 3 + self._times:
            DEEDS[self._kind]()
        time.sleep(self._seconds)
        return self._learner.evaluate(plan)


def node_of(request: float) -> str:
    """Waits, and returns the node of the cluster that this process is on."""
    import ray

    time.sleep(request)
    return str(ray.get_runtime_context().get_node_id())
