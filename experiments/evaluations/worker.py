"""What a backend offers the dispatcher: workers that answer one request at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class WorkerLostError(Exception):
    """A worker is gone, and its request unanswered.

    Args:
        reason: In one sentence.
        blameless: Whether the request cannot be the cause: a whole node went, say.
    """

    def __init__(self, reason: str, *, blameless: bool = False) -> None:
        super().__init__(reason)
        self.blameless = blameless


class BackendLostError(Exception):
    """No worker can be reached or started any more."""


class Worker(ABC):
    """Answers one request at a time.

    Attributes:
        ready: Done when the worker has started and built what answers; None if it has.
    """

    ready: Future[Any] | None = None

    @abstractmethod
    def begin(self, request: Any) -> Future[Any]:
        """Starts on a request.

        Returns:
            The answer, or what the request raised, or :class:`WorkerLostError`, or
            :class:`BackendLostError`.
        """

    @abstractmethod
    def stop(self) -> None:
        """Ends the worker at once, whatever it is at."""


class Backend(ABC):
    """Starts workers.

    Attributes:
        name: In words, for messages.
        count: How many workers can be had now, those that were started among them.
        startup: Seconds that a worker may take to start and to build what answers, in addition to
            those of its first answer.
        changed: To be called when more can be had, from any thread; what uses the backend sets it.
    """

    name: str
    count: int
    startup: float = 300.0
    changed: Callable[[], None] = staticmethod(lambda: None)

    @abstractmethod
    def start(self) -> Worker:
        """Starts a worker.

        Raises:
            BackendLostError: If none can be started now.
        """

    def reconnect(self) -> None:
        """Makes the backend usable again after :class:`BackendLostError`; all workers are gone.

        Raises:
            BackendLostError: If it stays away.
        """
        raise BackendLostError(f"{self.name} is gone")

    def close(self) -> None:  # noqa: B027  # a backend may hold nothing
        """Gives back what the backend holds; the workers were stopped before."""
