"""The command line: ``amc VERB --help`` teaches each verb by examples."""

from __future__ import annotations

import functools
import os
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import typer

from amc_env.errors import CompressionError
from experiments.commands import automl, compare, latency, record, runs, stages
from experiments.files import is_disk_full

OK, FAILED, BAD_INPUT = 0, 1, 2

_RESUMING = ("compress", "search", "train", "finetune")
_CONTINUING = ("latency-table", "compare", "record", "automl")  # by themselves


class InterruptedRunError(Exception):
    """The user pressed Ctrl-C; typer would turn the KeyboardInterrupt itself into an exit code."""


def interruptible(command: Callable[..., None]) -> Callable[..., None]:
    """Lets :func:`run` see that a command was interrupted."""

    @functools.wraps(command)
    def wrapper(*args: Any, **kwargs: Any) -> None:
        try:
            command(*args, **kwargs)
        except KeyboardInterrupt as error:
            raise InterruptedRunError from error

    return wrapper


def _group(name: str, text: str) -> typer.Typer:
    return typer.Typer(
        name=name,
        help=text,
        no_args_is_help=True,
        add_completion=False,
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
    latency.latency_table,
    compare.compare,
    record.record,
):
    app.command()(interruptible(command))
automl_app = _group("automl", automl.HELP)
for command in (automl.setup, automl.run, automl.table):
    automl_app.command()(interruptible(command))
app.add_typer(automl_app)


def main() -> None:
    """Runs the command line of this process."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command; every failure that a user can act on is one sentence on stderr.

    Args:
        arguments: Without the program's name.

    Returns:
        0; 2 for bad input; 1 when interrupted or for an error of ours.
    """
    try:
        code = app(list(arguments), standalone_mode=False)
        return code if isinstance(code, int) else OK
    except (InterruptedRunError, KeyboardInterrupt):
        _complain(_how_to_resume(arguments))
        return FAILED
    except BrokenPipeError:  # the reader of our output has gone, e.g. `amc evaluate | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except typer.Exit as error:
        return error.exit_code
    except typer.Abort:
        return FAILED
    except Exception as error:
        if "--debug" in arguments:
            traceback.print_exc()
        message, code = explain(error, arguments)
        _complain(message)
        return code


def explain(error: Exception, arguments: Sequence[str] = ()) -> tuple[str, int]:
    """Returns one sentence about an error of a command, and the exit code."""
    if is_disk_full(error):
        how = " with --resume" if _verb(arguments) in _RESUMING else ""
        return (
            f"The disk is full; nothing that was saved is damaged. Make room, then repeat the "
            f"command{how}.",
            BAD_INPUT,
        )
    # Usage errors of the parser; their class is private in some releases of typer.
    if hasattr(error, "format_message"):
        message = _one_line(error.format_message()).rstrip(".")
        return f"{message}. See --help.".removeprefix(". "), BAD_INPUT
    if isinstance(error, CompressionError | ValueError):
        return _one_line(str(error)), BAD_INPUT
    if isinstance(error, OSError):
        return f"{error.strerror or error}: {error.filename or ''}".rstrip(": "), BAD_INPUT
    return (
        f"Internal error ({type(error).__name__}: {_one_line(str(error))}); repeat the command "
        f"with --debug to see where.",
        FAILED,
    )


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _complain(message: str) -> None:
    print(f"amc: {message}", file=sys.stderr, flush=True)


def _verb(arguments: Sequence[str]) -> str:
    return arguments[0] if arguments else ""


def _how_to_resume(arguments: Sequence[str]) -> str:
    if _verb(arguments) in _CONTINUING:
        return "Interrupted; nothing is lost. Repeat the command to go on."
    if _verb(arguments) not in _RESUMING:
        return "Interrupted."
    again = [*arguments] if "--resume" in arguments else [*arguments, "--resume"]
    return f"Interrupted; nothing is lost. Continue with: {shlex.join(['amc', *again])}"


if __name__ == "__main__":
    main()
