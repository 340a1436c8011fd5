"""Progress of long work: a bar on a terminal, a line now and then in a log file."""

from __future__ import annotations

import math
import sys
import time
from typing import Self

from tqdm.auto import tqdm


def no_bar(shown: bool) -> bool | None:
    """Return what ``tqdm`` takes as ``disable`` for work of seconds: a log file gets no bar."""
    return None if shown else True


class Progress:
    """Counts the steps of work of minutes on stderr; a context manager, which ends the bar.

    Args:
        total: How many steps there are.
        desc: What is being done.
        initial: How many steps were done before.
        lines: How many lines, evenly spread, are written where stderr is no terminal; None writes
            one per step.
        shown: Whether to show anything.
    """

    def __init__(
        self,
        total: int,
        desc: str,
        *,
        initial: int = 0,
        lines: int | None = 10,
        shown: bool = True,
    ) -> None:
        self._bar = tqdm(desc=desc, total=total, initial=initial, disable=no_bar(shown))
        self._writes = shown and self._bar.disable
        self._every = 1 if lines is None else max(1, math.ceil(total / lines))
        self._name = f"{desc} {{}}/{total}"
        self._done = self._written = initial
        self._note = ""
        self._start = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End the bar, or write the line of the last step."""
        if self._done > self._written:
            self._write()
        self._bar.close()

    def step(self, note: str = "") -> None:
        """Count a step.

        Args:
            note: What it brought.
        """
        self._bar.set_postfix_str(note, refresh=False)
        self._bar.update()
        self._done += 1
        self._note = note
        if self._done % self._every == 0:
            self._write()

    def _write(self) -> None:
        self._written = self._done
        if self._writes:
            parts = [self._name.format(self._done), self._note]
            parts.append(tqdm.format_interval(time.monotonic() - self._start))
            tqdm.write(", ".join(filter(None, parts)), file=sys.stderr)
