"""Worker processes end with the search, and leave Ctrl-C to it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.processes import is_there

STARTING = """
import os, signal, sys
from pathlib import Path
from amc_compress.evaluations.payload import Payload
from amc_compress.evaluations.processes import Processes
backend = Processes(Payload.of(len), 1)
worker = backend.start()
worker.begin("abc")
(process,) = worker._pool._processes.values()
print(process.pid, backend._path.parent, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_search_that_is_killed_while_its_workers_start_leaves_none(tmp_path):
    said = tmp_path / "said"  # a pipe would be held open by a process that is left
    with said.open("w") as file:
        ended = subprocess.run([sys.executable, "-c", STARTING], stdout=file, stderr=file)
    assert ended.returncode == -signal.SIGKILL
    process, folder = said.read_text(encoding="utf-8").split()[:2]
    end = time.monotonic() + 20.0
    while is_there(int(process)) and time.monotonic() < end:
        time.sleep(0.1)
    left = is_there(int(process))
    if left:
        os.kill(int(process), signal.SIGKILL)
    assert not left
    assert not Path(folder).exists()


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads what Linux says")
def test_workers_do_not_hear_interrupts():
    from amc_compress.evaluations.payload import Payload
    from amc_compress.evaluations.processes import Processes

    backend = Processes(Payload.of(blocked_signals), 1)
    worker = backend.start()
    try:
        assert worker.begin(None).result(60.0) & 1 << (signal.SIGINT - 1)
    finally:
        worker.stop()
        backend.close()
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, ())


def blocked_signals(_: object) -> int:
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = [line for line in status.splitlines() if line.startswith("SigBlk")]
    return int(line.split()[1], 16)
