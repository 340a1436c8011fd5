"""Hands requests to workers and tells the answers in the order of submission.

The same for every backend: a worker that dies, hangs or raises costs its request an attempt, and
the request is tried again elsewhere; after a few attempts it has failed, and the others go on.
"""

from __future__ import annotations

import functools
import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from amc_compress.evaluations.worker import Backend, BackendLostError, Worker, WorkerLostError
from amc_env import EvaluationError
from amc_env.support.closing import Closing
from amc_env.validation.sentences import first_line

ATTEMPTS = 3
"""So often a request is tried before it has failed."""

_HOPELESS = 3  # failed requests, with none answered, after which it is not their fault
_TICK = 0.2  # seconds between two looks at the clock while waiting


@dataclass(frozen=True)
class Answer:
    """What came of a request.

    Args:
        value: What the worker returned; None if the request failed.
        failure: Why it failed, in one sentence; empty if it did not.
        attempts: How often it was tried.
    """

    value: Any
    failure: str = ""
    attempts: int = 1


@dataclass
class _Ticket:
    """A request on its way."""

    number: int
    request: Any
    attempts: int = 0
    reason: str = ""
    answer: Answer | None = None
    deadline: float = 0.0
    worker: Worker | None = None
    failed_on: list[Worker] = field(default_factory=list)


class Dispatcher(Closing):
    """Keeps the workers of a backend busy with requests.

    Requests go to workers as these become free, be it that the caller is at something else: an
    answer that comes in sends the next request out. What is told, and in which order, depends on
    the requests alone.

    Args:
        backend: Starts the workers; they are started when there is work for them.
        timeout: Seconds after which a worker that has not answered is stopped; None for never.
        startup: Seconds that a worker may take in addition before its first answer, if not those
            of the backend.
        attempts: Tries of a request before it has failed.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        timeout: float | None = None,
        startup: float | None = None,
        attempts: int = ATTEMPTS,
    ) -> None:
        self._backend = backend
        self._timeout = timeout
        self._startup = backend.startup if startup is None else startup
        self._attempts = attempts
        self._lock = threading.Condition(threading.RLock())
        self._queue: deque[_Ticket] = deque()
        self._told: deque[_Ticket] = deque()  # in the order of submission, oldest first
        self._running: dict[int, _Ticket] = {}
        self._idle: list[Worker] = []
        self._started = 0
        self._numbers = 0
        self._answered = self._failed = 0
        self._error: Exception | None = None
        self._lost = False
        self._sending = False
        backend.changed = self._changed

    @property
    def pending(self) -> int:
        """How many requests were submitted and not told yet."""
        with self._lock:
            return len(self._told)

    def submit(self, requests: Sequence[Any]) -> None:
        """Accepts requests; they begin as soon as workers are free."""
        with self._lock:
            for request in requests:
                ticket = _Ticket(self._numbers, request)
                self._numbers += 1
                self._queue.append(ticket)
                self._told.append(ticket)
            self._send()

    def result(self) -> Answer:
        """Waits for the answer to the oldest request that was not told yet.

        Raises:
            EvaluationError: If there is none, or nothing can be worked on any more.
        """
        with self._lock:
            if not self._told:
                raise EvaluationError("Expected a request before its answer is asked for.")
            ticket = self._told[0]
            while (answer := ticket.answer) is None:
                self._wait()
            self._raise_error()
            self._told.popleft()
            return answer

    def finished(self) -> tuple[Any, Answer]:
        """Waits for any request that was not told yet; returns it and its answer.

        Raises:
            EvaluationError: As :meth:`result`.
        """
        with self._lock:
            if not self._told:
                raise EvaluationError("Expected a request before its answer is asked for.")
            while True:
                self._raise_error()
                for ticket in self._told:
                    if ticket.answer is not None:
                        self._told.remove(ticket)
                        return ticket.request, ticket.answer
                self._wait()

    def cancel(self) -> None:
        """Forgets all requests that were not told; workers that are at one are stopped."""
        with self._lock:
            self._queue.clear()
            self._told.clear()
            for ticket in [*self._running.values()]:
                self._drop(ticket)
            self._running.clear()

    def close(self) -> None:
        """Stops all workers."""
        with self._lock:
            self.cancel()
            for worker in self._idle:
                worker.stop()
            self._idle.clear()
            self._started = 0
        self._backend.close()

    def _changed(self) -> None:
        """Gives waiting requests to workers that can be had by now."""
        with self._lock:
            self._send()
            self._lock.notify_all()

    # ---- inside the lock

    def _wait(self) -> None:
        """Waits until something may have happened.

        Raises:
            EvaluationError: If nothing will happen any more.
        """
        if self._lost:
            self._recover()
            return  # answers may be there at once
        self._lock.wait(_TICK if self._timeout is not None else None)
        self._check_clock()

    def _raise_error(self) -> None:
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def _send(self) -> None:
        """Gives waiting requests to free workers, and starts workers while some are missing."""
        if self._sending:  # an answer that was there at once: the loop below goes on anyway
            return
        self._sending = True
        try:
            while not self._lost and (ticket := self._next()) is not None:
                self._give(ticket)
        except BackendLostError:
            self._lost = True
            self._lock.notify_all()
        finally:
            self._sending = False

    def _next(self) -> _Ticket | None:
        """Returns the first of the waiting requests for which there is a worker now.

        One that has failed waits for a worker on which it has not, as long as there are such.
        """
        if self._started < self._backend.count:
            return self._queue[0] if self._queue else None
        if not self._idle:
            return None
        at_work = [ticket.worker for ticket in self._running.values()]
        for ticket in self._queue:
            if self._free_for(ticket) or all(worker in ticket.failed_on for worker in at_work):
                return ticket
        return None

    def _free_for(self, ticket: _Ticket) -> Worker | None:
        """Returns a free worker on which a request has not failed; None if there is none."""
        return next((w for w in reversed(self._idle) if w not in ticket.failed_on), None)

    def _give(self, ticket: _Ticket) -> None:
        """Gives a request that waits to a worker."""
        ticket.deadline = time.monotonic() + (self._timeout or 0.0)
        worker = self._free_for(ticket)
        if worker is None and self._started < self._backend.count:
            worker = self._backend.start()
            self._started += 1
        elif worker is None:
            worker = self._idle.pop()
        else:
            self._idle.remove(worker)
        self._queue.remove(ticket)
        ticket.worker = worker
        ticket.attempts += 1
        self._running[ticket.number] = ticket
        if worker.ready is not None and not worker.ready.done():
            ticket.deadline += self._startup
            worker.ready.add_done_callback(lambda _: self._started_on(ticket, worker))
        future = worker.begin(ticket.request)
        future.add_done_callback(functools.partial(self._ended, ticket, worker))

    def _started_on(self, ticket: _Ticket, worker: Worker) -> None:
        """Counts the time of a request from when its worker can work on it."""
        with self._lock:
            if ticket.worker is worker:
                ticket.deadline = time.monotonic() + (self._timeout or 0.0)

    def _drop(self, ticket: _Ticket) -> None:
        """Stops the worker of a request; what it still says is not heard."""
        self._running.pop(ticket.number, None)
        worker, ticket.worker = ticket.worker, None
        self._started -= 1
        if worker is not None:
            worker.stop()

    def _ended(self, ticket: _Ticket, worker: Worker, future: Future[Any]) -> None:
        """Hears what a worker says, in whatever thread it is said."""
        with self._lock:
            if ticket.worker is not worker:  # it was stopped in the meantime
                return
            error = None if future.cancelled() else future.exception()
            if future.cancelled() or isinstance(error, WorkerLostError | BackendLostError):
                self._drop(ticket)
                self._lost |= isinstance(error, BackendLostError)
                blameless = getattr(error, "blameless", isinstance(error, BackendLostError))
                self._again(ticket, first_line(error) if error else "", blameless=blameless)
            else:
                self._running.pop(ticket.number)
                ticket.worker = None
                self._idle.append(worker)
                if error is None:
                    self._answered += 1
                    ticket.answer = Answer(future.result(), attempts=ticket.attempts)
                else:
                    ticket.failed_on.append(worker)
                    self._again(ticket, first_line(error) or type(error).__name__)
            self._send()
            self._lock.notify_all()

    def _again(self, ticket: _Ticket, reason: str, *, blameless: bool = False) -> None:
        """Queues a request once more, ahead of the others, or gives it up."""
        ticket.reason = reason or ticket.reason
        if blameless:
            ticket.attempts -= 1
        if ticket.attempts < self._attempts:
            self._queue.appendleft(ticket)
            return
        failure = f"It failed {ticket.attempts} times, the last time: {ticket.reason}."
        ticket.answer = Answer(None, failure, ticket.attempts)
        self._failed += 1
        if not self._answered and self._failed == _HOPELESS:
            # With no success so far it is the machine or the learner rather than the requests.
            self._error = EvaluationError(
                f"The first {_HOPELESS} requests to {self._backend.name} failed {ticket.attempts} "
                f"times each, the last one because of: {ticket.reason}."
            )

    def _check_clock(self) -> None:
        if self._timeout is None:
            return
        now = time.monotonic()
        for ticket in [*self._running.values()]:
            if now > ticket.deadline:
                self._drop(ticket)
                self._again(ticket, f"it took longer than {self._timeout:g} s")
        self._send()

    def _recover(self) -> None:
        """Takes everything under way back, and waits for the backend to be there again."""
        for ticket in sorted(self._running.values(), key=lambda t: -t.number):
            self._drop(ticket)
            self._again(ticket, "", blameless=True)
        self._idle.clear()
        self._started = 0
        try:
            self._backend.reconnect()
        except BackendLostError as error:
            raise EvaluationError(
                f"{self._backend.name} cannot be reached any more ({first_line(error)}); what was "
                f"evaluated is stored, so resume the search when it can."
            ) from error
        self._lost = False
        self._send()
