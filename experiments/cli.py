"""The command line: ``amc VERB --help`` teaches each verb by examples."""

from __future__ import annotations

import contextlib
import functools
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer

from amc_compress.commands import automl, compare, latency, record, runs, sensitivity, stages
from amc_compress.commands.options import VerbCommand
from amc_compress.config.values import check_size
from amc_compress.interruptions import (
    exit_code,
    interrupted_by_signals,
    interruption,
    is_first,
    is_launched,
    is_spoken_for,
)
from amc_compress.user_code import (
    exit_call,
    explanation,
    last_place,
    one_line,
    readable,
    what_it_says,
)
from amc_env import __version__
from amc_env.errors import CompressionError
from amc_env.files import is_disk_full, is_memory_full

OK, FAILED, BAD_INPUT = 0, 1, 2

_RESUMING = ("compress", "search", "train", "finetune", "sensitivity")
_HEAD_START = 10.0
"""Seconds in which the first of several processes says what is wrong, and the others are ended."""

_TRAINING = ("train", "finetune")  # in several processes too
_CONTINUING = ("latency-table", "compare", "record", "automl")  # by themselves


class EndedCommandError(Exception):
    """The exception that ended a command; typer would hide some behind exit codes.

    Args:
        reason: The exception that the command was left by.
    """

    def __init__(self, reason: BaseException) -> None:
        super().__init__(reason)
        self.reason = reason


def watched(command: Callable[..., None]) -> Callable[..., None]:
    """Passes everything that ends a command to :func:`run`, exits and interruptions included."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            _check_processes(command.__name__)
            for name, value in kwargs.items():
                check_size(name, value)
            command(*args, **kwargs)
        except typer.Exit as error:
            if explanation(error) is None:  # it is our own
                raise
            raise EndedCommandError(error) from error
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            raise EndedCommandError(error) from error
        except BaseException as error:  # of another kind: a user's own, or not for us to answer
            if explanation(error) is None:
                raise
            raise EndedCommandError(error) from error

    return wrapper


def _check_processes(verb: str) -> None:
    """Rejects processes of ``torchrun`` for a command that is carried out by one.

    Raises:
        ValueError: If there are several.
    """
    started = int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1
    if started > 1 and verb not in _TRAINING and not is_launched():
        raise ValueError(
            f"Expected {' or '.join(f'amc {name}' for name in _TRAINING)} in {started} processes, "
            f"got amc {verb}, which one carries out: start it without torchrun."
        )


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=name == "amc",
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
        context_settings={"help_option_names": ["-h", "--help"]},
    )


app = _group(
    "amc",
    "Make trained networks smaller and faster under a hard budget.\n\n"
    "Start with: amc compress --out runs/first",
)
for command in (
    runs.compress,
    runs.train,
    runs.search,
    stages.finetune,
    stages.evaluate,
    stages.export,
    stages.report,
    sensitivity.sensitivity,
    latency.latency_table,
    compare.compare,
    record.record,
):
    app.command(cls=VerbCommand)(watched(command))
automl_app = _group("automl", automl.HELP)
for command in (automl.setup, automl.run, automl.table):
    automl_app.command()(watched(command))
app.add_typer(automl_app)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"amc {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """The options of the command line itself."""


def main() -> None:
    """Runs the command line of this process."""
    with interrupted_by_signals():
        sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; every failure that a user can act on is one sentence on stderr.

    Args:
        arguments: Without the program's name.

    Returns:
        0; 2 for bad input; 1 for an error of ours; 128 and the signal's number when interrupted.
    """
    try:
        code = app(list(arguments), prog_name="amc", standalone_mode=False)
        return code if isinstance(code, int) else OK
    except EndedCommandError as error:
        return _end(error.reason, arguments)
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return FAILED
    except (Exception, KeyboardInterrupt) as error:  # of the parser
        return _end(error, arguments)


def _end(error: BaseException, arguments: Sequence[str]) -> int:
    """Prints what ended a command; returns the exit code."""
    if (cause := interruption(error)) is not None:
        if not is_spoken_for():
            _complain(_how_to_resume(arguments))
        return exit_code(cause)
    if not is_first():
        try:
            time.sleep(_HEAD_START)
        except KeyboardInterrupt as ended:
            return exit_code(ended)
    if isinstance(error, BrokenPipeError):  # the reader has gone, e.g. `amc evaluate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    if "--debug" in arguments:
        traceback.print_exception(error)
    message, code = explain(error, arguments)
    _complain(message)
    return code


def explain(error: BaseException, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """Returns one sentence about an error of a command, and the exit code."""
    if is_disk_full(error):
        how = " with --resume" if _verb(arguments) in _RESUMING else ""
        return (
            f"The disk is full; nothing that was saved is damaged. Make room, then repeat the "
            f"command{how}.",
            BAD_INPUT,
        )
    if is_memory_full(error):
        return (
            f"There is not enough memory ({what_it_says(error)}); close other programs, or choose "
            f"a smaller --batch-size.",
            BAD_INPUT,
        )
    if (said := explanation(error)) is not None:
        return said, BAD_INPUT
    if isinstance(error, SystemExit):
        return f"The command was ended by {exit_call(error)} ({last_place(error)}).", BAD_INPUT
    return _explain_own(error)


def _explain_own(error: BaseException) -> tuple[str, int]:
    """Returns a sentence about an error in which no code of a user's had a part."""
    # Usage errors of the parser; their class is private in some releases of typer.
    if hasattr(error, "format_message"):
        message = one_line(error.format_message()).rstrip(".")
        end = "" if message.endswith("?") else "."
        return f"{message}{end} See --help.".removeprefix(". "), BAD_INPUT
    if isinstance(error, CompressionError | ValueError):
        return " ".join(str(error).split()), BAD_INPUT
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), BAD_INPUT
    return (
        f"Internal error ({what_it_says(error)}); repeat the command with --debug to see where.",
        FAILED,
    )


def _complain(message: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone
        print(f"amc: {readable(message)}", file=sys.stderr, flush=True)


def _verb(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments else ""


def _how_to_resume(arguments: Sequence[str]) -> str:
    if _verb(arguments) in _CONTINUING:
        return "Interrupted; nothing is lost. Repeat the command to resume."
    if _verb(arguments) not in _RESUMING:
        return "Interrupted."
    again = [*arguments] if "--resume" in arguments else [*arguments, "--resume"]
    return f"Interrupted; nothing is lost. Continue with: {shlex.join(['amc', *again])}"
