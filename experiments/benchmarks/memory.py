"""The largest memory that a process had."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_KIB = 1024
_MB = 1e6


def peak_memory() -> float:
    """Returns the largest resident memory of this process so far, in MB.

    From Linux's ``VmHWM``. ``getrusage``'s ``ru_maxrss`` is not asked where that is known: after
    ``fork`` and ``exec`` it begins with what the parent had. Where there is no ``/proc`` it is what
    there is, so start measurements from a small process there.
    """
    if _STATUS.exists():
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * _KIB / _MB
    return _resident(resource.RUSAGE_SELF)


def peak_of_workers() -> float:
    """Returns the largest resident memory of any process forked from this one that ended, in MB.

    0 if there was none. What such a process shares with this one counts as its own.
    """
    return _resident(resource.RUSAGE_CHILDREN)


def _resident(who: int) -> float:
    unit = 1 if sys.platform == "darwin" else _KIB
    return resource.getrusage(who).ru_maxrss * unit / _MB
