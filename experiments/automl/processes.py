"""Runs a command under a time limit and cleans up after it.

Frameworks start servers, workers and sessions of their own (H2O's Java, dask's workers, the runs of
auto-sklearn), which do not end with the process that was started, nor with its group. All of them
inherit a mark in their environment, by which they are found on Linux; elsewhere only the group is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from amc_compress.interruptions import interrupted_by_signals

_MARK = "AMC_AUTOML_JOB"
_POLL_SECONDS = 0.1
_LOOK_SECONDS = 2.0
_SHUTDOWN_SECONDS = 15.0  # for servers to be shut down once the answer is there


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Args:
        code: Its exit code; None if the time limit or its answer came first.
        answered: Whether its answer was there in time.
        wall_seconds: Until the answer was there, it ended, or the time limit.
        processor_seconds: Of the command and all it started till then, to about two seconds; None
            where that cannot be read.
    """

    code: int | None
    answered: bool
    wall_seconds: float
    processor_seconds: float | None


def run_limited(
    command: Sequence[str],
    *,
    seconds: float,
    answer: Path,
    folder: Path,
    log: Path,
    environment: Mapping[str, str],
) -> Ended:
    """Runs a command until it has written its answer, and no longer than a time limit.

    Args:
        command: Program and arguments.
        seconds: The time limit.
        answer: File that is there as soon as the command has done its work; it must appear whole.
        folder: Working directory.
        log: File for what it prints, both streams.
        environment: All its environment variables.

    Raises:
        OSError: If the command cannot be started.
        KeyboardInterrupt: If this process is interrupted or terminated; nothing is left then.
    """
    mark = f"{_MARK}={uuid.uuid4().hex}"
    name, _, value = mark.partition("=")
    began = time.monotonic()
    with log.open("wb") as output, interrupted_by_signals():  # to kill first what is started here
        process = subprocess.Popen(
            command,
            cwd=folder,
            env={**environment, name: value},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            used = _watch(process, mark, answer, began + seconds)
            wall = time.monotonic() - began
            if answer.exists():
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_SHUTDOWN_SECONDS)
            return Ended(process.poll(), answer.exists(), wall, used)
        finally:
            _kill(process, mark)


def _watch(
    process: subprocess.Popen[bytes], mark: str, answer: Path, deadline: float
) -> float | None:
    """Waits for the end, the answer or the deadline, and returns the processor time till then."""
    used = None
    next_look = 0.0
    while True:
        over = process.poll() is not None or answer.exists() or time.monotonic() > deadline
        if over or time.monotonic() >= next_look:
            # A process that has ended has no figures any more: the latest ones count then.
            used = _processor_seconds(mark) or used
            next_look = time.monotonic() + _LOOK_SECONDS
        if over:
            return used
        time.sleep(_POLL_SECONDS)


def _kill(process: subprocess.Popen[bytes], mark: str) -> None:
    """Kills the group and every marked process, until there is none left to start another."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    for _ in range(50):
        marked = _marked(mark)
        if not marked:
            break
        for pid in marked:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.02)
    process.wait()


def _marked(mark: str) -> list[int]:
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if mark.encode() in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
    return found


def _processor_seconds(mark: str) -> float:
    """Time of the marked processes that live, and of their dead children that were waited for."""
    ticks = 0
    for pid in _marked(mark):
        with contextlib.suppress(OSError, ValueError, IndexError):
            # What follows the name in brackets, which may hold blanks; fields 14 to 17 of proc(5).
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            ticks += sum(int(field) for field in fields[11:15])
    return float(ticks) / os.sysconf("SC_CLK_TCK")
