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
        while search.remaining:
            search.play(lambda *_: search.rng.random(1, dtype=np.float32), "random")
