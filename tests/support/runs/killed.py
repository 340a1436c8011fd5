"""Jobs whose processes are killed; little is imported, for every process of a pool imports this."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KilledJob:
    """Stands in for a job of a comparison."""

    name: str
    is_killer: bool = False
    seconds: float = 0.0

    def failed(self, error: str) -> str:
        return f"{self.name}: {error}"


def carry_out(job: KilledJob) -> tuple[None, str]:
    if job.is_killer:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(job.seconds)
    return None, f"{job.name}: done"


class Killed(BaseException):
    """Stands in for the signal that ends a process at once: nothing catches it."""


def dies_after(calls: int, function: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the function, which is killed as soon as it has returned for that many times."""
    count = iter(range(100))

    def wrapper(*arguments: Any, **options: Any) -> Any:
        result = function(*arguments, **options)
        if next(count) + 1 == calls:
            raise Killed
        return result

    return wrapper
