"""Hand-made plans: uniform, deep-heavy, shallow-heavy."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from amc_compress.agents.base import DEFAULT_FINALISTS, Agent
from amc_compress.agents.rollout import Search
from amc_env.one_shot import rescale


class Uniform(Agent):
    """The same ratio everywhere: the baseline of every search.

    It evaluates exactly one plan, ``env.uniform_plan()``, however many episodes are offered.
    """

    name = "uniform"
    deterministic: ClassVar[bool] = True

    def run(self, search: Search) -> None:  # noqa: D102
        search.evaluate(search.env.uniform_plan(), "uniform")


class Ramp(Agent):
    """One plan whose ratios rise or fall linearly from the first decision to the last.

    The "shallow" and "deep" rules that He et al. 2018 (AMC, section 4.1) compare with cut the first
    or the last layers most.

    Args:
        strength: How much less than the one end the other end keeps, before the whole is rescaled
            to the budget.
        finalists: See :class:`Agent`.
    """

    deterministic: ClassVar[bool] = True
    cuts_deep: ClassVar[bool]

    def __init__(self, *, strength: float = 0.6, finalists: int = DEFAULT_FINALISTS) -> None:
        super().__init__(finalists=finalists)
        if not 0.0 < strength < 1.0:
            raise ValueError(f"Expected 0 < strength < 1, got {strength}.")
        self.strength = strength

    def run(self, search: Search) -> None:  # noqa: D102
        requests = np.linspace(1.0, 1.0 - self.strength, search.env.n_decisions)
        plan = rescale(search.env, requests if self.cuts_deep else requests[::-1])
        search.evaluate(plan, self.name)


class DeepHeavy(Ramp):
    """Cuts the last layers most."""

    name = "deep-heavy"
    cuts_deep: ClassVar[bool] = True


class ShallowHeavy(Ramp):
    """Cuts the first layers most."""

    name = "shallow-heavy"
    cuts_deep: ClassVar[bool] = False
