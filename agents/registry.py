"""Agents by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

from agents.base import Agent
from agents.handcrafted import Uniform
from agents.local_search import LocalSearch
from agents.random_search import RandomSearch
from agents.sb3 import DDPG

AGENTS: dict[str, Callable[..., Agent]] = {
    "ddpg": DDPG,
    "uniform": Uniform,
    "random": RandomSearch,
    "local": LocalSearch,
}
"""Name -> factory taking the agent's options."""


def make_agent(name: str, **options: Any) -> Agent:
    """Builds an agent.

    Args:
        name: One of :data:`AGENTS`.
        **options: The agent's own settings.

    Raises:
        ValueError: If the name is unknown, or an option is unknown or out of range.
    """
    if name not in AGENTS:
        near = difflib.get_close_matches(name, AGENTS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"Unknown agent {name!r}; {hint}available: {', '.join(sorted(AGENTS))}.")
    try:
        return AGENTS[name](**options)
    except TypeError as error:
        raise ValueError(f"The agent {name!r} does not take these options: {error}") from error
