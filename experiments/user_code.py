"""Attributes an error to this package or to user code (model, agent, reward, cost).

Nothing is caught where the user's code is called: an error is read once, from its traceback, where
it is told. So it does not matter which of the many calls of a network or an agent it was.
"""

from __future__ import annotations

import inspect
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from types import FrameType

from amc_env.errors import CompressionError
from amc_env.validation.references import Source, sources

_PACKAGES = ("amc_env", "amc_compress", "amc_compress.agents", "amc_compress.learners")
_OURS = tuple(
    os.path.abspath(folder) + os.sep
    for name in _PACKAGES
    if (spec := find_spec(name)) is not None
    for folder in spec.submodule_search_locations or ()
)
_LONGEST = 400
_KEPT = 200
_ENDLESS = re.compile(rf"\S{{{3 * _KEPT},}}")


@dataclass(frozen=True)
class Place:
    """Where in a user's code an error came from.

    Args:
        title: Whose code it is, e.g. ``"the model 'net:make'"``.
        file: Its file.
        line: The line in it.
        direct: Whether the error is the code's own (or of a library that it called); False if code
            of ours that it called raised it.
        calls_us: Whether it is code that is meant to call ours, as agents are and models are not:
            what fails inside a model's forward may be a layer that we have put there.
    """

    title: str
    file: str
    line: int
    direct: bool = True
    calls_us: bool = False

    def __str__(self) -> str:
        return f"{self.file}, line {self.line}"


def place_of(error: BaseException) -> Place | None:
    """Returns where in a user's code an error was raised, None if none was on the way to it."""
    if isinstance(error, SyntaxError) and error.filename is not None:
        file = os.path.abspath(error.filename)
        if found := _covering(file):
            return Place(_title(found), file, error.lineno or 1)
    frames = list(_frames(error))
    direct = True
    for frame, line in reversed(frames):
        file, line = _location(frame, line)
        if file.startswith(_OURS):
            direct = False
        elif found := _covering(file):
            found = _narrowed(found, frames)
            calls_us = any(source.what != "model" for source in found)
            return Place(_title(found), file, line, direct, calls_us)
    return None


def explanation(error: BaseException) -> str | None:
    """Returns one sentence about an error in which a user's code had a part, else None.

    It names whose code, the file and the line. Where we have said already what is wrong, that is
    kept; where code of ours failed that a user's code called, it is said by whom.
    """
    link: BaseException | None = error
    while link is not None:
        place = place_of(link)
        is_said = isinstance(link, CompressionError | ValueError)
        if place is not None and (place.direct or place.calls_us or is_said):
            return _sentence(error, link, place)
        link = link.__cause__
    return None


def what_it_says(error: BaseException) -> str:
    """Returns type and text of an error, on one line."""
    text = one_line(str(error))
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def one_line(text: str) -> str:
    """Returns a text on one line, cut where it is very long."""
    line = " ".join(text.split())
    return line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..."


def readable(message: str) -> str:
    """Returns a message that any terminal can show, whatever was quoted in it.

    A value or a path of thousands of letters is cut, and what is no letter but steers a terminal
    is written as Python writes it.
    """
    shorter = _ENDLESS.sub(lambda match: f"{match[0][:_KEPT]}...", message)
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in shorter)


def exit_call(error: SystemExit) -> str:
    """Returns the call that an exit came from: ``"sys.exit(0)"``."""
    return f"sys.exit({'' if error.code is None else repr(error.code)})"


def last_place(error: BaseException) -> str:
    """Returns file and line in which an error was raised, in any code."""
    frames = list(_frames(error))
    if not frames:
        return "an unknown place"
    frame, line = frames[-1]
    return f"{frame.f_code.co_filename}, line {line}"


def _sentence(error: BaseException, link: BaseException, place: Place) -> str:
    if not place.direct:
        is_said = isinstance(link, CompressionError | ValueError)
        said = one_line(str(link)) if is_said else what_it_says(link)
        return f"{said.rstrip('.')} (in a call by {place.title}, {place})."
    if isinstance(link, SystemExit):
        return f"The code of {place.title} ended the process with {exit_call(link)} ({place})."
    if link is not error and isinstance(error, CompressionError):
        said = one_line(str(error)).rstrip(".")
        return f"{said} ({what_it_says(link)} in the code of {place.title}, {place})."
    return f"The code of {place.title} failed: {what_it_says(link)} ({place})."


def _frames(error: BaseException) -> Iterator[tuple[FrameType, int]]:
    step = error.__traceback__
    while step is not None:
        yield step.tb_frame, step.tb_lineno
        step = step.tb_next


def _location(frame: FrameType, line: int) -> tuple[str, int]:
    """File and line of a frame; of a rewritten forward those of the forward it was made from."""
    file = frame.f_code.co_filename
    if not file.startswith("<"):
        return os.path.abspath(file), line
    for owner in type(frame.f_locals.get("self")).__mro__:
        method = vars(owner).get(frame.f_code.co_name)
        code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
        module = sys.modules.get(owner.__module__)
        if code is not None and code.co_filename == getattr(module, "__file__", None):
            return os.path.abspath(code.co_filename), code.co_firstlineno
    return file, line


def _covering(file: str) -> list[Source]:
    return [source for source in sources() if source.covers(file)]


def _narrowed(found: list[Source], frames: list[tuple[FrameType, int]]) -> list[Source]:
    """Of several that share a file, those whose own function or class was at work."""
    names = {(f.f_globals.get("__name__", ""), f.f_code.co_qualname) for f, _ in frames}
    exact = [s for s in found if any(s.defines(*name) for name in names)]
    models = [s for s in found if s.what == "model"]  # what a factory returned runs without it
    return exact or models or found


def _title(found: list[Source]) -> str:
    return " or ".join(dict.fromkeys(f"the {source.title}" for source in found))
