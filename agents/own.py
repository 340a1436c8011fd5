"""Agents of the user's own, found by the dotted path of their class."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agents.base import Agent
from agents.options import check_options, hints_of

FORM = "package.module.Class"


def is_own(name: str) -> bool:
    """Returns whether a name is a path, not one of ours."""
    return "." in name


def import_agent(path: str) -> Callable[..., Any]:
    """Imports what makes an agent; the current directory is searched too.

    Args:
        path: ``"package.module.Class"``; a function that returns an agent will do as well.

    Raises:
        ValueError: If it cannot be imported, or is nothing that makes an agent.
    """
    module_name, _, attribute = path.rpartition(".")
    # A console script does not have the current directory on its path, `python -m` has. It comes
    # last: a file of the user's must not take the place of a package that is imported later.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # a module of the user's may fail with anything
        raise ValueError(
            f"The module {module_name!r} of the agent {path!r} cannot be imported "
            f"({type(error).__name__}: {error}); write {FORM} with a module on the Python path."
        ) from error
    factory = getattr(module, attribute, None)
    is_class = inspect.isclass(factory)
    if not callable(factory) or (is_class and not issubclass(factory, Agent)):
        got = "no such name" if factory is None else f"{attribute} = {factory!r}"
        raise ValueError(
            f"Expected {path!r} to be a subclass of agents.Agent, or a function that returns an "
            f"agent; {module_name} has {got}."
        )
    if inspect.isabstract(factory):
        missing = ", ".join(sorted(factory.__abstractmethods__))
        raise ValueError(f"Expected the class {path} to implement {missing}; see agents.Agent.")
    result: Callable[..., Any] = factory
    return result


def make_own(path: str, options: Mapping[str, Any]) -> Agent:
    """Builds an agent of the user's own.

    Args:
        path: ``"package.module.Class"``.
        options: Its settings.

    Raises:
        ValueError: If it cannot be imported, does not take the options, cannot be built, or is no
            agent with a name to be recorded under.
    """
    factory = import_agent(path)
    check_options(options, hints_of(factory))
    try:
        inspect.signature(factory).bind(**options)
    except TypeError as error:
        raise ValueError(f"The agent {path!r} does not take these options: {error}") from error
    try:
        agent = factory(**options)
    except ValueError:  # about an option: the constructor says it better
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"The agent {path!r} could not be made ({type(error).__name__}: {error})."
        ) from error
    return _checked(agent, path)


def _checked(agent: object, path: str) -> Agent:
    if not isinstance(agent, Agent):
        raise ValueError(f"Expected {path} to return an agents.Agent, got {agent!r}.")
    name = getattr(agent, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f'Expected the class of the agent {path} to have a name, as in name = "mine", got '
            f"{name!r}."
        )
    if not hasattr(agent, "rejudge"):
        raise ValueError(
            f"Expected the class of the agent {path} to call super().__init__() in its "
            f"constructor; it does not."
        )
    return agent
