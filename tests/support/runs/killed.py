"""Jobs whose processes are killed; little is imported, for every process of a pool imports this."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass


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
