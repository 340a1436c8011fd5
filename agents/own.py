"""Agents of the user's own, found by the dotted path of their class."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents.base import Agent

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
    # A console script does not have the current directory on its path, `python -m` has.
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a module of the user's may fail with anything
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
    result: Callable[..., Any] = factory
    return result


def check_agent(agent: object, path: str) -> Agent:
    """Returns an agent of the user's own if it is one, and has a name to be recorded under.

    Raises:
        ValueError: If it is something else.
    """
    if not isinstance(agent, Agent):
        raise ValueError(f"Expected {path} to return an agents.Agent, got {agent!r}.")
    name = getattr(agent, "name", None)
    if not isinstance(name, str) or not name:
        raise ValueError(
            f'Expected the class of the agent {path} to have a name, as in name = "mine", got '
            f"{name!r}."
        )
    return agent
