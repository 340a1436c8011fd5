"""Random search: uniform actions through the environment."""

from __future__ import annotations

import numpy as np

from amc_compress.agents.base import Agent
from amc_compress.agents.rollout import Search


class RandomSearch(Agent):
    """Every action of every episode is drawn from U(0, 1); the best plan seen wins.

    What a random action means is the environment's action mapping: with ``centred``, half of the
    draws keep more than the balanced ratio and half less.
    """

    name = "random"

    def run(self, search: Search) -> None:  # noqa: D102
        env, rng = search.env, search.rng
        while not search.is_over:
            while search.has_room:
                drawn = rng.random(env.n_decisions, dtype=np.float32)
                search.submit(env.decode(drawn), "random")
            search.result()
