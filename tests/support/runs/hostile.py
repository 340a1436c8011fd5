"""Every option of every verb, found in the command line itself, and values that no option takes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin

import typer
from typer.models import OptionInfo

from amc_compress.cli import app

BEYOND = ("9223372036854775808", "-9223372036854775809", "1" + "0" * 400, "9" * 5000)
"""Whole numbers that 64 bits do not hold; Python does not even read the last one."""
WHOLE = (*BEYOND, "2147483647", "2147483648", "-1", "1.5", "nan", "inf", "", " ", "abc", "0x10",
         "1e3", "²", "1,2", "\u202e7")  # fmt: skip
REAL = ("nan", "inf", "-inf", "1e999", "-1", "-1e300", "1e300", "", " ", "abc", "1,5", "²")
LONG, NESTED = "x" * 100_000, "[" * 100_000
WORDS = ("", " ", LONG, NESTED, "naïve ☃", "\u202eabc", "a\nb", "\x1b[31m", "nan", "-1", "::",
         ":", ",", "=", "a=b", "no.such:thing", "{", "%s", "1e999")  # fmt: skip


@dataclass(frozen=True)
class Case:
    """One option with one value.

    Args:
        verb: Of the command line, in one or two words.
        option: As it is written, or ``""`` of an argument.
        kind: ``"int"``, ``"float"``, ``"path"`` or ``"text"``.
        value: What it is given.
    """

    verb: tuple[str, ...]
    option: str
    kind: str
    value: str

    @property
    def words(self) -> tuple[str, ...]:
        """Option and value."""
        return (f"{self.option}={self.value}",) if self.option else ("--", self.value)

    @property
    def is_sure(self) -> bool:
        """Whether the value is none, whatever the option; nearly every text is a name."""
        is_name = self.kind == "path" or self.option == "--input-name"
        return not is_name and self.value in (
            *BEYOND,
            "nan",
            "inf",
            "-inf",
            "1e999",
            "abc",
            "1,5",
            "²",
        )

    def __str__(self) -> str:
        return f"{' '.join(self.verb)} {self.option} {self.value[:20]!r}"


def cases(paths: Sequence[Path]) -> Iterator[Case]:
    """Yields every option of every verb that takes a value, with all values of its type.

    Args:
        paths: Of things that are not what any option asks for.
    """
    for verb, function in _verbs(app):
        for parameter in inspect.signature(function, eval_str=True).parameters.values():
            if get_origin(parameter.annotation) is not Annotated:
                continue
            kind, info = get_args(parameter.annotation)
            if kind is bool:
                continue
            names = {int: "int", float: "float", Path: "path"}
            plain = "".join(names[part] for part in (kind, *get_args(kind)) if part in names)
            values = {"int": WHOLE, "float": REAL}.get(plain, (*WORDS, *map(str, paths)))
            option = _written(parameter.name, info) if isinstance(info, OptionInfo) else ""
            yield from (Case(verb, option, plain or "text", value) for value in values)


def _verbs(
    group: typer.Typer, words: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Callable[..., Any]]]:
    for each in group.registered_commands:
        assert each.callback is not None
        name = each.name or each.callback.__name__.replace("_", "-")
        yield (*words, name), each.callback
    for inner in group.registered_groups:
        assert inner.typer_instance is not None
        yield from _verbs(inner.typer_instance, (*words, str(inner.typer_instance.info.name)))


def _written(name: str, info: OptionInfo) -> str:
    """How an option is written: as it declares itself, else as its parameter is called."""
    declared = (str(word) for word in (info.default, *(info.param_decls or ())))
    return next((w for w in declared if w.startswith("--")), f"--{name.replace('_', '-')}")
