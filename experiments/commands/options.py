"""Command-line options, made from their declarations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Collection
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import typer
from typer.core import TyperCommand

from amc_compress.config.option import ANY_TIME, Option, declared, flag, option
from amc_compress.config.options.devices import DeviceOptions
from amc_compress.config.options.task import RUN
from amc_compress.config.run_config import RunConfig

_FEW = 20
"""So many options are shown at once; of more, those of every day."""

_ALL = "amc.help_all"  # key in the context of a command

Directory = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="A run folder, made with --out.", show_default=False),
]

_run = functools.partial(option, panel=RUN)


@dataclass(frozen=True)
class VerbOptions:
    """What a verb is told in addition to the options of the run."""

    out: Path = _run(  # noqa: RUF009
        MISSING, "The run folder; everything is written there.", everyday=True
    )
    config: Path | None = _run(  # noqa: RUF009
        None,
        "YAML or JSON file of options, e.g. the config.json of a run, named as here without the "
        "dashes. The command line wins over it.",
        everyday=True,
    )
    devices: int | None = _run(
        None,
        "Train in this many processes, on a GPU each with --device cuda; each takes its share of "
        "every batch. torchrun does the same for `amc train` and `amc finetune`. Of `amc compress` "
        "these are the first training and the fine-tuning; its search has --workers.",
        least=1,
        default_text="1, or those of torchrun",
    )
    resume: bool = _run(
        False,
        "Continue the run in --out where it was interrupted, with the same options.",
        everyday=True,
    )
    trust: bool = _run(
        False,
        "Run the code that DIR or --config names (a model, teacher, agent or cost of somebody's "
        "own), and let its weights files run code if it says --allow-pickle. Only for files "
        "you trust.",
    )
    no_export: bool = _run(False, "Skip ONNX export and latency measurement.")
    quiet: bool = _run(False, "No progress, no notes.", aliases=("q",), everyday=True)
    debug: bool = _run(False, "Show where an error came from.")


def _parameters(cls: type) -> dict[str, inspect.Parameter]:
    hints = get_type_hints(cls)
    return {name: _parameter(name, hints[name], option) for name, option in declared(cls).items()}


def _parameter(name: str, hint: Any, option: Option) -> inspect.Parameter:
    """What typer makes an option of, see :func:`takes`."""
    kind, default = option.kind or hint, option.default
    if rows := [part for part in (kind, *get_args(kind)) if get_origin(part) is tuple]:
        kind = list[str] if str in get_args(rows[0]) else str
    if option.read is not None and not isinstance(default, str):  # it has no such text
        default = None
    info = typer.Option(
        *(flag(word) for word in (name, *option.aliases)),
        help=option.help,
        rich_help_panel=option.panel,
        show_default=option.default_text or default not in (None, "", MISSING),
        metavar=option.metavar,
        autocompletion=_completion(option.choices),
    )
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=inspect.Parameter.empty if default is MISSING else default,
        annotation=Annotated[kind | None if default is None else kind, info],
    )


def _completion(choices: Collection[str]) -> Callable[[str], list[str]] | None:
    if not choices:
        return None
    return lambda incomplete: [word for word in choices if word.startswith(incomplete)]


_PARAMETERS = _parameters(VerbOptions) | _parameters(RunConfig)
_DECLARED = declared(VerbOptions) | declared(RunConfig)


def _names(stages: tuple[str, ...], *, of_run: bool = False) -> tuple[str, ...]:
    return tuple(
        name
        for name, option in declared(RunConfig).items()
        if option.stage in stages and (option.panel == RUN) is of_run
    )


PIXELS = ("image_size", "image_column", "label_column", "mean", "std", "batch_size")
SPLITS = ("validation_size", "validation_split")
TASK = _names(("task", "train"))
SEARCH = (*_names(("search",)), *_names((ANY_TIME,)))
FINETUNE = _names(("finetune",))
TRAINING = ("devices", *declared(DeviceOptions))
FREE = _names((ANY_TIME,), of_run=True)
NEW_RUN = ("out", "config", *_names(("task",), of_run=True), *FREE, "resume", "trust")
OUTPUT = ("quiet", "debug")


class VerbCommand(TyperCommand):
    """A verb; of many options its ``--help`` shows those of every day."""

    def format_help(self, ctx: Any, formatter: Any) -> None:
        """Writes the help, of all options where ``--help-all`` is given."""
        rare = () if ctx.meta.get(_ALL) else getattr(self.callback, "rare", ())
        for parameter in self.get_params(ctx):
            if getattr(parameter, "is_flag", False) and parameter.metavar is None:
                parameter.metavar = ""  # typer writes <bool>, as if a value followed
        hidden: list[Any] = [parameter for parameter in self.params if parameter.name in rare]
        for parameter in hidden:
            parameter.hidden = True  # in the help alone: a shell completes all of them
        try:
            super().format_help(ctx, formatter)
        finally:
            for parameter in hidden:
                parameter.hidden = False


def _show_all(ctx: typer.Context, wanted: bool) -> None:
    if wanted:
        ctx.meta[_ALL] = True
        typer.echo(ctx.get_help())
        raise typer.Exit


def _help_all(count: int) -> inspect.Parameter:
    text = f"Show all {count} options and exit; --help shows the everyday ones."
    info = typer.Option("--help-all", help=text, is_eager=True, callback=_show_all)
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter("help_all", keyword, default=False, annotation=Annotated[bool, info])


_Verb = Callable[..., None]


def takes(*names: str) -> Callable[[_Verb], _Verb]:
    """Adds options to a command; its function gets those that it has parameters for.

    typer reads the options from a function's signature, so that is what is written here. What
    a verb has no parameter for is found in its ``ctx.params``. Parameters of the verb that are not
    named here stay as they are, ahead of the options.

    Args:
        names: Of options of the run or of :class:`VerbOptions`, in the order of the help.
    """

    def decorate(verb: _Verb) -> _Verb:
        own = inspect.signature(verb, eval_str=True).parameters
        kept = [p for p in own.values() if p.name not in names]

        @functools.wraps(verb)
        def wrapper(**values: Any) -> None:
            verb(**{name: value for name, value in values.items() if name in own})

        parameters = [*kept, *(_PARAMETERS[name] for name in names)]
        if len(parameters) > _FEW:
            wrapper.__dict__["rare"] = {n for n in names if not _DECLARED[n].everyday}
            parameters.append(_help_all(len(parameters)))
        wrapper.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": None}
        wrapper.__dict__["__signature__"] = inspect.Signature(parameters)
        return wrapper

    return decorate
