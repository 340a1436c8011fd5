"""Signals that ask a command to end: it ends as by Ctrl-C, tidy, and says how to go on."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from types import FrameType

ENDING = tuple(
    getattr(signal, name)
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
    if hasattr(signal, name)  # Windows has no SIGHUP
)
"""The signals of Ctrl-C, of whatever manages processes, and of a terminal that is closed."""

LAUNCHED = "amc-"
"""The ID of the processes that ``--devices`` starts begins so: what started them speaks."""


class TerminatedError(KeyboardInterrupt):
    """A signal has asked this process to end.

    Args:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class _Once:
    """Interrupts at the first signal; what that closes is not to be interrupted by the next."""

    def __init__(self) -> None:
        self._was_heard = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        if not self._was_heard:
            self._was_heard = True
            raise TerminatedError(number)


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """Lets SIGTERM and SIGHUP raise :class:`KeyboardInterrupt` in the block, as Ctrl-C does.

    Once: who manages processes may send a signal to a process, and then to its group. A signal that
    is ignored stays ignored (``nohup``).
    """
    hear, before = _Once(), {}
    with contextlib.suppress(ValueError):  # not the main thread, which gets the signals
        for number in ENDING:
            handler = signal.getsignal(number)
            is_heard = number == signal.SIGINT or isinstance(handler, _Once)  # by a block around
            if not is_heard and handler is not signal.SIG_IGN:
                before[number] = signal.signal(number, hear)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def interruption(error: BaseException | None) -> KeyboardInterrupt | None:
    """Returns the interruption that an error came of; None if there was none.

    What is closed after one may fail itself: a progress bar's terminal is gone, say.
    """
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error


def exit_code(error: KeyboardInterrupt) -> int:
    """Returns the exit code of a process that an interruption ended, as shells have it."""
    return 128 + int(getattr(error, "number", signal.SIGINT))


def signal_of(code: int) -> str:
    """Returns the name of the signal that a process was ended by.

    Args:
        code: Its exit code: that of :func:`exit_code`, or as ``subprocess`` has it.

    Returns:
        Nothing if it ended by itself.
    """
    number = -code if code < 0 else code - 128
    try:
        return signal.Signals(number).name
    except ValueError:
        return ""


def is_spoken_for() -> bool:
    """Whether another process tells the user that the command was interrupted.

    The first one of those that work together, or that which started them.
    """
    return is_launched() or not is_first()


def is_launched() -> bool:
    """Whether this process was started by ``--devices``."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "").startswith(LAUNCHED)


def is_first() -> bool:
    """Whether this is the first of the processes that ``torchrun`` started, or the only one."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"
