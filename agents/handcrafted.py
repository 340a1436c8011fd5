"""Plans that no search is needed for."""

from __future__ import annotations

from typing import ClassVar

from agents.base import Agent
from agents.rollout import Search


class Uniform(Agent):
    """The same ratio everywhere: the line every search must beat.

    It judges exactly one plan, ``env.uniform_plan()``, however many episodes are offered.
    """

    name: ClassVar[str] = "uniform"

    def run(self, search: Search) -> None:  # noqa: D102
        search.judge(search.env.uniform_plan(), "uniform")
