"""An option of a run is declared once: one field with its default, help, range and learners.

The command line, the checks, the files of ``--config`` and ``docs/options.md`` are made from it.
Adding an option takes one field in ``config.options``, and the place that uses its value.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from typing import Any

ANY_TIME = "any time"
"""In place of the stage of an option that decides nothing about the result."""


@dataclasses.dataclass(frozen=True)
class Option:
    """What is declared of an option in addition to its name and its type.

    Args:
        default: Where nothing is said; ``dataclasses.MISSING`` if something must be.
        help: What it does, for ``--help`` and the docs.
        stage: The stage that fixes it: it may change until that stage has begun, or at
            ``ANY_TIME``.
        panel: The heading that it stands under.
        everyday: Whether ``--help`` shows it; ``--help-all`` shows all.
        learners: Those that read it; none if all do.
        choices: The words on offer; none for any word.
        least: The smallest number.
        above: What a number must exceed.
        most: The largest number, where there is a ``least`` or ``above`` too.
        read: Makes the value of the option's flag and its text, where that is not the value itself.
        kind: The type on the command line, where the field's own does not say.
        default_text: Told in place of a default that depends on other options.
        metavar: Stands for the value in the help.
        aliases: Other names of it, on the command line as well.
        formerly: Its names in the files of older releases.
    """

    default: Any
    help: str
    stage: str = ""
    panel: str = ""
    everyday: bool = False
    learners: tuple[str, ...] = ()
    choices: Collection[str] = ()
    least: float | None = None
    above: float | None = None
    most: float | None = None
    read: Callable[[str, Any], Any] | None = None
    kind: Any = None
    default_text: str = ""
    metavar: str | None = None
    aliases: tuple[str, ...] = ()
    formerly: tuple[str, ...] = ()

    def check(self, name: str, value: Any) -> None:
        """Checks the value of the option, which has the option's type.

        Raises:
            ValueError: If it is not on offer, or out of its range.
        """
        if self.choices and value not in self.choices:
            raise ValueError(
                f"Expected {flag(name)} to be one of {', '.join(self.choices)}, got {value!r}."
            )
        if value is None:
            return
        fits = (
            (self.least is None or value >= self.least)
            and (self.above is None or value > self.above)
            and (self.most is None or value <= self.most)
        )
        if not fits:
            raise ValueError(f"Expected {flag(name)} {self.range}, got {value}.")

    @property
    def range(self) -> str:
        """The numbers that it takes, in words; empty if it takes all."""
        if self.least is self.above is self.most is None:
            return ""
        if self.most is None:
            return f"> {self.above:g}" if self.least is None else f">= {self.least:g}"
        low = f"({self.above:g}" if self.least is None else f"[{self.least:g}"
        return f"in {low}, {self.most:g}]"


def option(default: Any, help: str, **declared: Any) -> Any:
    """Declares an option, as a field of a dataclass.

    Args:
        default: Where nothing is said; ``dataclasses.MISSING`` if something must be.
        help: What it does.
        declared: What else :class:`Option` takes.
    """
    return dataclasses.field(
        default=default, metadata={"option": Option(default, help, **declared)}
    )


def declared(cls: type) -> dict[str, Option]:
    """Returns the options that a dataclass declares, by name and in their order."""
    return {f.name: f.metadata["option"] for f in dataclasses.fields(cls)}


def flag(name: str) -> str:
    """Returns how an option is written: ``"--round-to"`` for ``"round_to"``."""
    return f"--{name.replace('_', '-')}" if len(name) > 1 else f"-{name}"
