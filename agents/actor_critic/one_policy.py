"""One policy for every budget: each episode draws a budget, and the policy observes it."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np

from amc_compress.agents.actor_critic.algorithms import DDPG
from amc_compress.agents.actor_critic.exploration import Exploration, Proposal, Proposals
from amc_compress.agents.actor_critic.exploring_env import ExploringEnv
from amc_compress.agents.actor_critic.sb3_agent import SB3Agent
from amc_compress.agents.base import unwrap
from amc_compress.agents.rollout import Search
from amc_compress.agents.trials import AgentError, OnTrial, Trial
from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.one_shot import positions, rescale
from amc_env.validation.checks import checked

if TYPE_CHECKING:
    from amc_compress.agents.logging import EpisodeLogger

_REACH = 0.25
_FEWEST = 8


@dataclass(frozen=True)
class Front:
    """Result of one search over several budgets.

    Args:
        best: Budget -> the best trial of the whole search that meets it.
        uniform: Budget -> the trial of its uniform plan.
        policy: Budget -> the trial of the trained policy, without noise.
        trials: Everything evaluated, in order; each was within the budget of its episode.
        agent: What trained; its ``save_policy`` keeps the policy.
        seconds: Wall time.
    """

    best: Mapping[Budget, Trial]
    uniform: Mapping[Budget, Trial]
    policy: Mapping[Budget, Trial]
    trials: tuple[Trial, ...]
    agent: SB3Agent
    seconds: float


class BudgetLine:
    """Budgets between the given ones.

    Args:
        budgets: At least two, bounds on the same costs.

    Raises:
        ValueError: If there are fewer, or they bound different costs.
    """

    def __init__(self, budgets: Sequence[Budget]) -> None:
        names = {tuple(sorted(b.bounds)) for b in budgets}
        if len(set(budgets)) < 2 or len(names) != 1 or any(b.limits for b in budgets):
            raise ValueError(
                f"Expected two or more different budgets of shares of the same costs, got "
                f"{[str(b) for b in budgets]}."
            )
        self._names = names.pop()
        self.anchors = sorted(set(budgets), key=lambda b: b.bounds[self._names[0]][1])

    def at(self, place: float) -> Budget:
        """Returns the budget at a place: 0 is the first one, 1 the second, 1.5 between the next."""
        low = min(int(place), len(self.anchors) - 2)
        share = place - low
        one, two = self.anchors[low], self.anchors[low + 1]
        if share in (0.0, 1.0):
            return one if share == 0.0 else two
        bounds = {
            name: [
                (1.0 - share) * a + share * b
                for a, b in zip(one.bounds[name], two.bounds[name], strict=True)
            ]
            for name in self._names
        }
        return Budget(**bounds)


class OnePolicy:
    """Trains one policy for every budget between some.

    Every episode plays under a budget of its own: one of those that are asked for, or one between
    them. What counts for learning is the reward above that of the uniform plan (between two
    budgets, above the straight line from one uniform plan to the other). Elites are the best plans
    of about that cost, from whatever budget, brought to the budget at hand. At the end the policy
    plays each of the budgets once, without noise.

    Args:
        between: Share of the episodes whose budget lies between those that are asked for.
        **options: Those of ``DDPG``; ``one_shot`` is not among them.
    """

    @checked
    def __init__(self, *, between: float = 0.5, **options: Any) -> None:
        if not 0.0 <= between <= 1.0:
            raise ValueError(f"Expected between in [0, 1], got {between}.")
        if options.get("one_shot"):
            raise ValueError("Expected one action per decision: one_shot has no state to see.")
        self.between = between
        self.agent = DDPG(finalists=0, **options)

    @checked
    def search(
        self,
        env: gym.Env[Any, Any],
        budgets: Sequence[Budget | str],
        episodes: int,
        seed: int,
        *,
        on_trial: OnTrial | None = None,
        logger: EpisodeLogger | None = None,
        progress: bool = False,
    ) -> Front:
        """Searches for the best plans within several budgets at once.

        Args:
            env: A ``CompressionEnv``; its budget is left as it was.
            budgets: What plans are wanted for.
            episodes: Evaluations in all, at least three for each budget.
            seed: The same seed gives the same trials, bit for bit.
            on_trial: As in :meth:`Agent.search`.
            logger: As in :meth:`Agent.search`.
            progress: As in :meth:`Agent.search`.

        Raises:
            ValueError: If the budgets bound different costs or there are too few episodes.
            InfeasibleBudgetError: If no plan meets one of them.
        """
        started, bare = time.perf_counter(), unwrap(env)
        line = BudgetLine([Budget.of(budget) for budget in budgets])
        if episodes < 3 * len(line.anchors):
            raise ValueError(
                f"Expected at least {3 * len(line.anchors)} episodes for {len(line.anchors)} "
                f"budgets, got {episodes}."
            )
        before = bare.budget
        try:
            for budget in line.anchors:
                bare.set_budget(budget)
            if logger is not None:
                logger.start(bare, "one-policy", self.agent.hyperparameters() | {"seed": seed})
            with Search(bare, episodes, seed, on_trial, logger, progress) as search:
                uniform, policy = self._run(search, line)
        finally:
            bare.set_budget(before)
        best = {b: _best_within(search.trials, b) for b in line.anchors}
        seconds = time.perf_counter() - started
        return Front(best, uniform, policy, tuple(search.trials), self.agent, seconds)

    def _run(
        self, search: Search, line: BudgetLine
    ) -> tuple[dict[Budget, Trial], dict[Budget, Trial]]:
        uniform = {}
        for budget in line.anchors:
            search.env.set_budget(budget)
            uniform[budget] = search.evaluate(search.env.uniform_plan(), "uniform")
        proposals = _BudgetProposals(search, self.agent.recipe.exploration, len(line.anchors))
        draws = _Draws(search, line, uniform, self.between, proposals)
        env = ExploringEnv(search, proposals, draws.baseline, False, draws.options)
        self.agent.play(search, proposals, [env])
        last = search.trials[-len(line.anchors) :]
        return uniform, dict(zip(line.anchors, last, strict=True))


class _Draws:
    """Draws the budget of each episode, with its reward baseline."""

    def __init__(
        self,
        search: Search,
        line: BudgetLine,
        uniform: Mapping[Budget, Trial],
        between: float,
        proposals: Proposals,
    ) -> None:
        self._search = search
        self._line = line
        self._rewards = [uniform[b].reward for b in line.anchors]
        self._between = between
        self._n_known = proposals.n_known
        self._episode = 0
        self._place = 0.0

    def options(self) -> dict[str, Any]:
        """Draws the budget of the episode that begins."""
        n, rng = len(self._line.anchors), self._search.rng
        left = self._search.remaining
        if self._episode < self._n_known:  # the uniform plans, played again
            self._place = float(self._episode)
        elif left <= n:  # the policy's own plans
            self._place = float(n - max(left, 1))
        elif rng.random() < self._between:
            self._place = float(rng.uniform(0, n - 1))
        else:
            self._place = float(rng.integers(n))
        self._episode += 1
        return {"budget": self._line.at(self._place)}

    def baseline(self) -> float:
        """Returns what uniform plans reach under the budget of this episode."""
        return float(np.interp(self._place, np.arange(len(self._rewards)), self._rewards))


class _BudgetProposals(Proposals):
    """Proposals from elites near this episode's budget; the policy plays the last few."""

    def __init__(self, search: Search, exploration: Exploration, n_last: int) -> None:
        super().__init__(search, exploration, one_shot=False)
        self._n_last = n_last

    def next(self) -> Proposal:
        if self._played == self.n_known and self._search.remaining <= self._n_last:
            return Proposal(None, "policy", greedy=True)
        return super().next()

    def elites(self) -> list[CompressionPlan]:
        env, count = self._search.env, self._exploration.elite_count
        name, (_, upper) = next(iter(env.budget.bounds.items()))
        near = sorted(self._search.trials, key=lambda t: abs(np.log(t.cost_ratio[name] / upper)))
        close = [t for t in near if abs(t.cost_ratio[name] / upper - 1.0) <= _REACH]
        pool = close if len(close) >= _FEWEST else near[:_FEWEST]
        # More may be spent here, or less: what a plan reached says most where it cost as much.
        pool.sort(key=lambda t: -_discounted(t.reward, min(1.0, upper / t.cost_ratio[name])))
        plans = dict.fromkeys(_brought_to_budget(env, t.plan) for t in pool[: 2 * count])
        return [*plans][:count]


def _discounted(reward: float, share: float) -> float:
    """A reward made worse by a share of at most 1, whatever its sign."""
    return reward * share if reward >= 0.0 else reward / share


def _brought_to_budget(env: CompressionEnv, plan: CompressionPlan) -> CompressionPlan:
    """A plan in the same proportions that spends this budget."""
    return rescale(env, positions(env, plan))


def _best_within(trials: Sequence[Trial], budget: Budget) -> Trial:
    """The best trial that meets a budget, from episodes of any budget."""
    met = [trial for trial in trials if budget.is_met(trial.cost_ratio)]
    if not met:
        raise AgentError(f"No plan within {budget} was evaluated.")
    return max(met, key=lambda trial: (trial.reward, -trial.episode))
