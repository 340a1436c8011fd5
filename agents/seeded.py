"""Two agents in sequence in one search; the second knows the trials of the first."""

from __future__ import annotations

from typing import Any

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.rollout import Search


class Seeded(Agent):
    """Runs one agent, then another one with the remaining evaluations.

    All that the first one evaluated within the budget is known to the second: a replay buffer holds
    it, a sampler has been told, a climb begins at the best of it.

    Args:
        first: Starts; it should leave some evaluations.
        then: Continues.
        name: What the two together are called.
        finalists: See :class:`Agent`.
    """

    name = "seeded"

    def __init__(
        self, first: Agent, then: Agent, name: str = "", *, finalists: int = DEFAULT_FINALISTS
    ) -> None:
        super().__init__(finalists=finalists)
        self._agents = (first, then)
        self.first = first.name
        self.then = then.name
        # The name of an instance: each pair is an agent of its own.
        self.name = name or f"{first.name}+{then.name}"

    def hyperparameters(self) -> dict[str, Any]:
        """Returns the settings of both, those of the second without a prefix."""
        first, then = self._agents
        return {
            **{f"first_{k}": v for k, v in first.hyperparameters().items()},
            **then.hyperparameters(),
            "first": self.first,
            "then": self.then,
        }

    def run(self, search: Search) -> None:  # noqa: D102
        first, then = self._agents
        first.run(search)
        if search.remaining:
            then.run(search)
