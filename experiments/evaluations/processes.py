"""Workers that are processes of this machine, by loky, each with a pool of its own.

One process to a pool, so that a process that is killed takes no other's work with it, and one that
hangs can be stopped alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from multiprocessing import resource_tracker
from pathlib import Path
from typing import Any

from amc_compress.evaluations.payload import Payload, built, told
from amc_compress.evaluations.worker import Backend, Worker, WorkerLostError
from amc_compress.interruptions import ENDING
from amc_compress.temporary import TemporaryFolder

_LOOK = 1.0  # seconds between two looks at whether the search still runs


class ProcessWorker(Worker):
    """One process.

    Args:
        path: File of the payload.
        key: Its digest.
        threads: Threads that it computes with.
    """

    def __init__(self, path: Path, key: str, threads: int) -> None:
        from joblib.externals.loky import ProcessPoolExecutor

        self._path, self._key, self._threads = path, key, threads
        variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
        with _without_interrupts():
            self._pool: Any = ProcessPoolExecutor(
                max_workers=1,
                timeout=None,
                env=dict.fromkeys(variables, str(threads)),
                # Before anything else, for a search that is killed while its workers start.
                initializer=_watch,
                initargs=(os.getpid(), path.parent),
            )
            self.ready = self._pool.submit(_build, self._path, self._key, self._threads)

    def begin(self, request: Any) -> Future[Any]:  # noqa: D102
        heard: Future[Any] = Future()
        try:
            with _without_interrupts():
                ran = self._pool.submit(_answer, self._path, self._key, self._threads, request)
        except RuntimeError as error:  # broken before it began
            heard.set_exception(WorkerLostError(f"its process is gone ({type(error).__name__})."))
            return heard
        ran.add_done_callback(lambda future: _pass_on(future, heard))
        return heard

    def stop(self) -> None:  # noqa: D102
        self._pool.shutdown(wait=False, kill_workers=True)


def _pass_on(ran: Future[Any], heard: Future[Any]) -> None:
    from concurrent.futures.process import BrokenProcessPool

    if ran.cancelled():
        heard.cancel()
        heard.set_running_or_notify_cancel()
        return
    error = ran.exception()
    if isinstance(error, BrokenProcessPool):
        heard.set_exception(WorkerLostError("its process was killed; is there enough memory?"))
    elif error is not None:
        heard.set_exception(error)
    else:
        heard.set_result(ran.result())


@contextlib.contextmanager
def _without_interrupts() -> Iterator[None]:
    """Starts processes that do not hear what asks the search to end, which ends them then.

    Such signals often go to all processes of a terminal or job. They inherit what is blocked, so
    that it holds from their first instruction on. What tracks the resources of processes is started
    before: it ignores some of these signals by itself, and starting it ends a block of those.
    """
    from joblib.externals.loky.backend import resource_tracker as lokys

    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        resource_tracker.ensure_running()
        lokys.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _build(path: Path, key: str, threads: int) -> None:
    """Builds in a worker process what answers; what fails fails again at the first request."""
    built(key, path.read_bytes, threads)


def _answer(path: Path, key: str, threads: int, request: Any) -> Any:
    """Answers a request in a worker process."""
    return told(built(key, path.read_bytes, threads), request)


def _watch(parent: int, folder: Path) -> None:
    """Ends this worker process with the one that started it, and nothing is left when it ends."""
    from tqdm import tqdm

    # Its own lock for progress bars is one of the system, which outlives a process that is killed.
    tqdm.set_lock(threading.RLock())
    threading.Thread(target=_end_with, args=(parent, folder), daemon=True).start()


def _end_with(parent: int, folder: Path) -> None:
    """Ends this process when the one that started it was killed."""
    while os.getppid() == parent:
        time.sleep(_LOOK)
    shutil.rmtree(folder, ignore_errors=True)
    os._exit(1)


class Processes(Backend):
    """Processes of this machine.

    Args:
        payload: What every one of them builds once.
        count: How many.
        threads: Threads of each.
    """

    name = "the worker processes"

    def __init__(self, payload: Payload, count: int, threads: int = 1) -> None:
        self.count = count
        self._threads = threads
        # Of this user alone: what lies there is run by the workers.
        self._folder = TemporaryFolder("workers")
        self._key = payload.key
        self._path = self._folder.path / payload.key
        with open(self._path, "xb", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
            file.write(payload.data)

    def start(self) -> Worker:  # noqa: D102
        return ProcessWorker(self._path, self._key, self._threads)

    def close(self) -> None:  # noqa: D102
        self._folder.close()
