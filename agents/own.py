"""User-defined agents, imported by the name of their class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

from amc_compress.agents.base import Agent
from amc_compress.agents.options import check_options, hints_of
from amc_env.validation.references import FORM, is_reference, resolve

_HEAD = re.compile(r"[^:=,]*:[^:=,]*")


def is_own(name: str) -> bool:
    """Returns whether a name names code, and is not one of ours."""
    return "." in name or ":" in name


def own_head(label: str) -> str | None:
    """Returns the ``module:Class`` that a label begins with, None if it begins with a plain name.

    What stands behind the first colon of a plain name are options, and they have an equals sign.
    """
    match = _HEAD.match(label)
    rest = label[match.end() :] if match else ""
    if match is None or not is_reference(match[0].strip()) or rest[:1] not in ("", ":"):
        return None
    return match[0]


def import_agent(path: str) -> Callable[..., Any]:
    """Imports what makes an agent; the current directory is searched too.

    Args:
        path: ``"package.module:Class"``, or the older form ``"package.module.Class"``; a function
            that returns an agent will do as well.

    Raises:
        ValueError: If it is not there, or is nothing that makes an agent.
    """
    module_name, _, attribute = path.rpartition("." if ":" not in path else ":")
    factory = resolve(f"{module_name}:{attribute}", "agent")
    is_class = inspect.isclass(factory)
    if not callable(factory) or (is_class and not issubclass(factory, Agent)):
        raise ValueError(
            f"Expected {path!r} to be a subclass of amc_compress.agents.Agent, or a function that "
            "returns an "
            f"agent; {module_name} has {attribute} = {factory!r}."
        )
    if inspect.isabstract(factory):
        missing = ", ".join(sorted(factory.__abstractmethods__))
        raise ValueError(
            f"Expected the class {path} to implement {missing}; see amc_compress.agents.Agent."
        )
    result: Callable[..., Any] = factory
    return result


def make_own(path: str, options: Mapping[str, Any]) -> Agent:
    """Builds a user-defined agent; what its code raises is not caught.

    Args:
        path: As :func:`import_agent` takes it.
        options: Its settings.

    Raises:
        ValueError: If it is not there, does not take the options, or is no agent with a name to be
            recorded under.
    """
    factory = import_agent(path)
    check_options(options, hints_of(factory))
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"The agent {path!r} does not take these options: {error}") from error
    return _checked(factory(**options), path)


def _checked(agent: object, path: str) -> Agent:
    if not isinstance(agent, Agent):
        raise ValueError(f"Expected {path} to return an amc_compress.agents.Agent, got {agent!r}.")
    name = getattr(agent, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f'Expected the class of the agent {path} to have a name, as in name = "mine", got '
            f"{name!r}."
        )
    if not hasattr(agent, "finalists"):
        raise ValueError(
            f"Expected the class of the agent {path} to call super().__init__() in its "
            f"constructor; it does not."
        )
    return agent


__all__ = ["FORM", "import_agent", "is_own", "make_own", "own_head"]
