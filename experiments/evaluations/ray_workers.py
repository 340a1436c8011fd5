"""Workers that are actors of Ray, on this machine or on the nodes of a cluster."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures import Future
from importlib.util import find_spec
from multiprocessing.connection import Connection
from typing import Any

from amc_compress.evaluations.payload import Payload, RequestError
from amc_compress.evaluations.ray_order import Order, versions
from amc_compress.evaluations.worker import Backend, BackendLostError, Worker, WorkerLostError
from amc_env import ArgumentError
from amc_env.errors import MissingDependencyError
from amc_env.validation.sentences import counted

PATIENCE = 600.0
"""Seconds that a cluster may be away before the search ends."""

_CONNECTING = 120.0  # seconds that starting or joining a cluster may take
_CLOSING = 20.0  # seconds that Ray may take to stop what it started
_LONGEST_PAUSE = 30.0  # seconds between two tries to reach the cluster again
_DRIVER = "from amc_compress.evaluations.ray_driver import main; main()"


def check_installed() -> None:
    """Checks that there is Ray, without importing it.

    Raises:
        MissingDependencyError: If there is none.
    """
    if find_spec("ray") is None:
        raise MissingDependencyError(
            "--ray needs Ray; install it: pip install 'amc-compress[ray]'."
        )


class RayWorker(Worker):
    """One actor.

    Args:
        backend: Reaches it.
        number: Its number there; None if it could not start.
        reason: Why it could not.
    """

    def __init__(self, backend: RayWorkers, number: int | None, reason: str = "") -> None:
        self._backend, self._number, self._reason = backend, number, reason

    def begin(self, request: Any) -> Future[Any]:  # noqa: D102
        if self._number is None:
            future: Future[Any] = Future()
            future.set_exception(WorkerLostError(self._reason))
            return future
        return self._backend.ask(self._number, request)

    def stop(self) -> None:  # noqa: D102
        self._backend.stopped(self._number)


class RayWorkers(Backend):
    """Actors of Ray.

    A worker counts as soon as Ray has found a processor for it and it has built what answers: where
    the cluster has room for fewer than were asked for, those work, and the others join them when
    nodes do.

    Args:
        payload: What every one of them builds once; it travels to each node once.
        count: How many are wanted; None for as many as the cluster has room for, which may change.
        threads: Processors of each.
        address: ``"local"`` starts Ray on this machine, ``"auto"`` joins the cluster that this
            machine is a node of, ``"HOST:PORT"`` that at the address, of which it must be a node.
        whole_nodes: Whether every worker has a node for itself, and there is one on each.
        quiet: Whether nothing is said on stderr.

    Raises:
        MissingDependencyError: If Ray is not installed.
        ArgumentError: If the cluster cannot be reached.
    """

    name = "the workers of Ray"
    startup = 0.0  # who is handed out has started

    def __init__(
        self,
        payload: Payload,
        count: int | None = None,
        threads: int = 1,
        address: str = "auto",
        *,
        whole_nodes: bool = False,
        quiet: bool = False,
    ) -> None:
        check_installed()
        self._payload, self._wanted, self._threads = payload, count, threads
        self._address, self._quiet = address, quiet
        self._whole_nodes = whole_nodes
        self._lock = threading.Lock()
        self._tickets = itertools.count()
        self._futures: dict[int, Future[Any]] = {}
        self._ready: deque[tuple[int | None, str]] = deque()
        self._taken = 0
        self._had_any = False
        self._is_lost = False
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket
        self._channel: Connection
        try:
            self._connect(_CONNECTING)
        except BackendLostError as error:
            raise ArgumentError(
                f"Expected a cluster of Ray for --ray {address}, but {error}; start one (`ray "
                f"start --head` on one machine, `ray start --address HOST:6379` on the others, "
                f"this one among them), or use --ray local."
            ) from error

    @property
    def count(self) -> int:  # type: ignore[override]
        """How many there are by now, in use or not; one more where starting it will fail."""
        with self._lock:
            return self._taken + max(len(self._ready), int(self._is_lost))

    def start(self) -> Worker:  # noqa: D102
        with self._lock:
            if self._is_lost:
                raise BackendLostError("the cluster is gone")
            number, reason = self._ready.popleft()
            self._taken += 1
            return RayWorker(self, number, reason)

    def ask(self, number: int, request: Any) -> Future[Any]:
        """Hands a request to an actor."""
        future: Future[Any] = Future()
        with self._lock:
            ticket = next(self._tickets)
            self._futures[ticket] = future
        self._send("ask", number, ticket, request)
        with self._lock:
            failed = self._is_lost and self._futures.pop(ticket, None) is not None
        if failed:
            future.set_exception(BackendLostError("the cluster is gone"))
        return future

    def stopped(self, number: int | None) -> None:
        """Ends an actor that was handed out; another one takes its place."""
        with self._lock:
            self._taken -= 1
        if number is not None:
            self._send("stop", number)

    def reconnect(self) -> None:
        """Waits for the cluster with growing pauses, and puts the payload there again.

        Raises:
            BackendLostError: If it stays away for :data:`PATIENCE`.
        """
        self._end_driver()
        began, pause = time.monotonic(), 1.0
        with self._lock:
            self._futures.clear()
            self._ready.clear()
            self._taken = 0
        while True:
            left = PATIENCE - (time.monotonic() - began)
            self._say(f"the cluster is gone; trying to reach it for {left:.0f} s more")
            try:
                self._connect(min(_CONNECTING, left))
            except BackendLostError:
                if time.monotonic() + pause - began > PATIENCE:
                    raise
                time.sleep(pause)
                pause = min(2.0 * pause, _LONGEST_PAUSE)
            else:
                self._say("the cluster is there again")
                return

    def close(self) -> None:  # noqa: D102
        with self._lock:
            self._futures.clear()
        self._end_driver()

    def _connect(self, seconds: float) -> None:
        """Starts the process that speaks to Ray, and waits until it has reached the cluster."""
        ours, theirs = socket.socketpair()
        with theirs:
            paths = [path or os.getcwd() for path in sys.path]
            self._process = subprocess.Popen(
                [sys.executable, "-c", _DRIVER, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                env={
                    **os.environ,
                    "PYTHONPATH": os.pathsep.join(paths),
                    "RAY_USAGE_STATS_ENABLED": "0",
                },
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the search, which then closes it
            )
        self._socket, self._channel = ours, Connection(os.dup(ours.fileno()))
        order = Order(
            self._address, self._wanted, self._threads, self._payload, versions(), tuple(paths),
            self._whole_nodes,
        )  # fmt: skip
        said: tuple[Any, ...] = ("unreachable", f"nothing answered within {seconds:.0f} s")
        with contextlib.suppress(EOFError, OSError):
            self._channel.send(order)
            if self._channel.poll(seconds):
                said = self._channel.recv()
        if said[0] != "connected":
            self._end_driver()
            self._channel.close()
            raise BackendLostError(said[1])
        with self._lock:
            self._is_lost = False
        heard = (self._process, self._channel)
        threading.Thread(target=self._listen, args=heard, daemon=True).start()

    def _end_driver(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(OSError), self._socket:
            # Not only closed: a thread that waits for what comes in must wake up.
            self._socket.shutdown(socket.SHUT_RDWR)
        try:
            process.wait(_CLOSING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _send(self, *message: Any) -> None:
        with contextlib.suppress(OSError, ValueError):  # who listens finds out as well
            self._channel.send(message)

    def _listen(self, process: subprocess.Popen[bytes], channel: Connection) -> None:
        """Hears what the cluster says until it is gone."""
        while True:
            try:
                message = channel.recv()
            except (EOFError, OSError):
                break
            self._hear(*message)
        channel.close()
        with self._lock:
            if self._process is not process:  # it was ended, and another one may have begun
                return
            self._is_lost = True
            orphans = [*self._futures.values()]
            self._futures.clear()
        for future in orphans:
            future.set_exception(BackendLostError("the cluster is gone"))
        self.changed()

    def _hear(self, kind: str, *rest: Any) -> None:
        if kind in ("answer", "raised", "lost"):
            self._tell(kind, *rest)
        elif kind == "workers":
            ready, wanted = rest
            if ready < wanted:
                self._say(
                    f"{counted(ready, 'worker')} of {wanted} at work; the others start, or wait "
                    f"for processors: they join when nodes do"
                )
        else:
            if kind == "broken":
                self._say(f"a worker could not start: {rest[0]}")
            with self._lock:
                if kind == "worker":
                    self._had_any = True
                    self._ready.append((rest[0], ""))
                elif not self._had_any:  # a request is to say so if it goes on like this
                    self._ready.append((None, rest[0]))
            self.changed()

    def _tell(self, kind: str, ticket: int, said: Any, by_node: bool = False) -> None:
        with self._lock:
            future = self._futures.pop(ticket, None)
        if future is None:  # the worker was stopped
            return
        if kind == "answer":
            future.set_result(said)
        elif kind == "raised":
            future.set_exception(RequestError(said))
        else:
            future.set_exception(WorkerLostError(said, blameless=by_node))

    def _say(self, text: str) -> None:
        if not self._quiet:
            print(f"Ray: {text}.", file=sys.stderr, flush=True)
