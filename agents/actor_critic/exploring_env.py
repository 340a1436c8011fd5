"""Environment wrapper for off-policy algorithms: executes and records proposals."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch

from amc_compress.agents.actor_critic.exploration import Proposal, Proposals, truncated_normal
from amc_compress.agents.determinism import isolated_randomness
from amc_compress.agents.rollout import Search, checked_action
from amc_env import CompressionEnv, CompressionPlan, OneShotEnv
from amc_env.one_shot import rescale
from amc_env.support.threads import limited_threads

Action = npt.NDArray[np.float32]
Observation = npt.NDArray[np.float32]
Step = tuple[Observation, SupportsFloat, bool, bool, dict[str, Any]]


class ExploringEnv(gym.Wrapper[Observation, Action, Observation, Action]):
    """Maps the policy's actions to executed ones, centres the reward, records every trial.

    Who acts is decided by the proposals when the first action of an episode arrives: by then the
    learner has learned from the episode before.

    Args:
        search: Evaluates and records.
        proposals: Choose the actor of every episode.
        baseline: Returns the reward that becomes 0, asked at the end of every episode.
        one_shot: Whether an action is a whole plan.
        options: Returns the options of the reset that begins an episode.
        problem: Where the episodes are played; by default the environment of the search. Episodes
            that run side by side need one each, with the scores in common.

    Attributes:
        scalars: Returns further numbers for the log, asked after every episode.
        greedy: The policy without any noise: observation -> action.
        episode_length: Steps of every episode.
    """

    def __init__(
        self,
        search: Search,
        proposals: Proposals,
        baseline: Callable[[], float],
        one_shot: bool,
        options: Callable[[], dict[str, Any] | None] = lambda: None,
        problem: CompressionEnv | None = None,
    ) -> None:
        self._problem = problem = search.env if problem is None else problem
        self._shots = OneShotEnv(problem) if one_shot else None
        super().__init__(problem if self._shots is None else self._shots)
        self._search = search
        self._proposals = proposals
        self._baseline = baseline
        self._options = options
        self._proposal: Proposal | None = None
        self._script: Action | None = None
        self._taken: list[Action] = []
        self._ahead: Action | CompressionPlan | None = None
        self._observation: Observation | None = None
        self._outer_threads = torch.get_num_threads()
        self.scalars: Callable[[], dict[str, float]] = dict
        self.greedy: Callable[[Observation], Action] | None = None
        self.episode_length = 1 if one_shot else search.env.n_decisions

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode."""
        self._proposal, self._taken, self._ahead = None, [], None
        self._observation, info = super().reset(seed=seed, options=options or self._options())
        return self._observation, info

    def step(self, action: Action) -> Step:
        """Executes the proposal's action, or the policy's with noise."""
        proposal = self._begun()
        with isolated_randomness(), limited_threads(self._outer_threads):
            chosen = self._chosen(proposal, action) if self._ahead is None else self._ahead
            self._ahead = None
            observation, _, terminated, truncated, info = self._execute(chosen)
        self._observation = observation
        if not terminated:
            return observation, 0.0, terminated, truncated, info
        return observation, self._finish(info), terminated, truncated, info

    @property
    def is_at_last_step(self) -> bool:
        """Whether the next step ends the episode."""
        return len(self._taken) == self.episode_length - 1

    def foresee(self, action: Action) -> CompressionPlan | None:
        """Chooses the last step without taking it; :meth:`step` takes it, whatever its action.

        Args:
            action: The policy's.

        Returns:
            The plan that the episode will end with; None if it is an old one, played again.
        """
        proposal = self._begun()
        with isolated_randomness(), limited_threads(self._outer_threads):
            chosen = self._chosen(proposal, action)
            if self._shots is None:
                plan = self._problem.decode(np.concatenate([*self._taken, chosen]))
            else:
                plan = chosen = (
                    chosen
                    if isinstance(chosen, CompressionPlan)
                    else rescale(self._problem, chosen)
                )
        self._ahead = chosen
        return None if proposal.known is not None else plan

    def _begun(self) -> Proposal:
        """The actor of the episode, chosen when its first step is."""
        if self._proposal is None:
            self._proposal = self._proposals.next()
            plan = self._proposal.plan
            self._script = None if plan is None else self._problem.encode(plan)[:, None]
        return self._proposal

    def _chosen(self, proposal: Proposal, action: Action) -> Action | CompressionPlan:
        if proposal.plan is None:
            return self._policy(action)
        if self._shots is not None:
            return proposal.plan
        assert self._script is not None
        scripted: Action = self._script[len(self._taken)]
        return scripted

    def _execute(self, chosen: Action | CompressionPlan) -> Step:
        if isinstance(chosen, CompressionPlan):
            assert self._shots is not None
            return self._shots.play(chosen)
        self._taken.append(chosen)
        return super().step(chosen)

    def _policy(self, action: Action) -> Action:
        """The policy's action, with the noise of this episode."""
        assert self._proposal is not None
        assert self._observation is not None
        if self._proposal.greedy and self.greedy is not None:
            action = self.greedy(self._observation)
        assert self.action_space.shape is not None
        means = checked_action(action, self.action_space.shape[0])
        sigma, rng = self._proposal.sigma, self._search.rng
        return np.array([truncated_normal(float(m), sigma, rng) for m in means], np.float32)

    def _finish(self, info: dict[str, Any]) -> float:
        """Records the trial, unless it is an old one; returns the centred reward."""
        assert self._proposal is not None
        if self._proposal.known is not None:
            return self._proposal.known.reward - self._baseline()
        outcome = self._search.env.evaluate(CompressionPlan(info["plan"]))
        scalars = {"exploration/sigma": self._proposal.sigma, **self.scalars()}
        trial = self._search.record(outcome, self._proposal.source, scalars)
        return trial.reward - self._baseline()
