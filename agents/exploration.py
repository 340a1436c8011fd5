"""Who acts in which episode, and with how much noise.

Exploration lives in an environment wrapper, not in SB3's ``action_noise``: SB3 adds that noise to
its warm-up actions too, clips instead of truncating, measures it on [-1, 1] and counts resets that
are no episodes. Off-policy learning does not mind who acted, because the replay buffer stores the
executed action.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gymnasium as gym
import numpy as np
import numpy.typing as npt
import torch
from scipy.special import ndtr, ndtri

from agents.base import best_distinct
from agents.determinism import isolated_randomness, torch_threads
from agents.local_search import neighbour
from agents.rollout import Search, checked_action
from amc_env import CompressionEnv, CompressionPlan

Action = npt.NDArray[np.float32]
Observation = npt.NDArray[np.float32]
Scalars = Callable[[], dict[str, float]]


def truncated_normal(mean: float, sigma: float, rng: np.random.Generator) -> float:
    """Draws from N(mean, sigma) conditioned on [0, 1] (no mass piles up on the bounds)."""
    if sigma <= 0.0:
        return mean
    low, high = ndtr((0.0 - mean) / sigma), ndtr((1.0 - mean) / sigma)
    drawn = mean + sigma * float(ndtri(low + rng.random() * (high - low)))
    return min(1.0, max(0.0, drawn))


@dataclass(frozen=True)
class Exploration:
    """The schedule of an agent's exploration.

    Sigmas are on the action scale [0, 1].

    Args:
        warmup_episodes: Episodes before the policy acts (the uniform plan is the first of them).
        warmup: ``"perturb"`` draws around the uniform plan's actions; ``"random"`` draws
            from U(0, 1) as AMC does.
        warmup_sigma: Spread of ``"perturb"``.
        sigma: Noise of the first episode in which the policy acts.
        final_sigma: Noise of the last episode but one; the last one is noise-free. The decay is
            geometric per episode.
        elite_share: Probability that an episode starts from one of the best plans so far instead
            of the policy.
        elite_count: How many best plans count as elite.
        elite_step: Reach of an elite's change, as a share of a decision's grid.
    """

    warmup_episodes: int = 10
    warmup: str = "perturb"
    warmup_sigma: float = 0.2
    sigma: float = 0.15
    final_sigma: float = 0.02
    elite_share: float = 0.4
    elite_count: int = 3
    elite_step: float = 0.35

    def __post_init__(self) -> None:
        if self.warmup not in ("perturb", "random"):
            raise ValueError(f"Expected warmup 'perturb' or 'random', got {self.warmup!r}.")
        if self.warmup_episodes < 1 or self.elite_count < 1:
            raise ValueError("Expected warmup_episodes >= 1 and elite_count >= 1.")
        if not 0.0 <= self.elite_share <= 1.0 or not 0.0 < self.elite_step <= 1.0:
            raise ValueError("Expected elite_share in [0, 1] and elite_step in (0, 1].")
        if min(self.warmup_sigma, self.sigma, self.final_sigma) < 0.0:
            raise ValueError("Expected sigmas >= 0.")

    def sigma_at(self, episode: int, episodes: int) -> float:
        """Returns the noise on the policy's actions in an episode of a search.

        Args:
            episode: Counted from 0.
            episodes: Length of the whole search.
        """
        if episode < self.warmup_episodes or episode >= episodes - 1:
            return 0.0
        if self.sigma == 0.0 or self.final_sigma == 0.0:
            return self.sigma
        span = max(1, episodes - 2 - self.warmup_episodes)
        progress = (episode - self.warmup_episodes) / span
        return float(self.sigma * (self.final_sigma / self.sigma) ** progress)


def _uniform_actions(env: CompressionEnv) -> Action:
    """The actions of the uniform plan: 0.5 in the centred reading, encoded in the others.

    In the centred reading 0.5 means "balanced with what is left" wherever the episode has gone,
    which a fixed list of encoded actions would not.
    """
    centre = np.full(env.n_decisions, 0.5, dtype=np.float32)
    plan = env.uniform_plan()
    return centre if env.decode([float(c) for c in centre]) == plan else env.encode(plan)


class ExploringEnv(gym.Wrapper[Observation, Action, Observation, Action]):
    """Turns what the policy asks into what is done, centres the reward, records every trial.

    Episode 0 plays the uniform plan, then the plans of ``openings``, then warm-up, then the
    policy with decaying noise or a changed elite plan; the last episode is the bare policy.
    The reward is the trial's reward minus that of the uniform plan.

    Args:
        search: Judges and records.
        exploration: The schedule.
        openings: Plans worth trying first.
        scalars: Further numbers for the log, asked after every episode.
    """

    def __init__(
        self,
        search: Search,
        exploration: Exploration,
        openings: tuple[tuple[CompressionPlan, str], ...] = (),
        scalars: Scalars = dict,
    ) -> None:
        super().__init__(search.env)
        self._search = search
        self._exploration = exploration
        self._openings = ((search.env.uniform_plan(), "uniform"), *openings)
        self._centre = _uniform_actions(search.env)
        self.scalars = scalars
        self._script: Action | None = None
        self._step = 0
        self._outer_threads = torch.get_num_threads()

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode and decides who acts in it."""
        episode, episodes = len(self._search.trials), self._search.episodes
        self._sigma = self._exploration.sigma_at(episode, episodes)
        self._step = 0
        self._script, self._source = self._choose(episode, episodes)
        return super().reset(seed=seed, options=options)

    def _choose(self, episode: int, episodes: int) -> tuple[Action | None, str]:
        """The whole episode's actions and their source; no actions where the policy acts."""
        search, rng, settings = self._search, self._search.rng, self._exploration
        if episode < len(self._openings):
            plan, source = self._openings[episode]
            return search.env.encode(plan), source
        if episode < settings.warmup_episodes:
            return self._warmup_actions(), "warm-up"
        if episode < episodes - 1 and rng.random() < settings.elite_share:
            elites = best_distinct(search.trials, settings.elite_count)
            start = elites[int(rng.integers(len(elites)))].plan
            plan = neighbour(search.env, start, rng, settings.elite_step)
            return search.env.encode(plan), "elite"
        return None, "policy"

    def _warmup_actions(self) -> Action:
        settings, rng = self._exploration, self._search.rng
        if settings.warmup == "random":
            return rng.random(self._search.env.n_decisions, dtype=np.float32)
        drawn = [truncated_normal(float(c), settings.warmup_sigma, rng) for c in self._centre]
        return np.array(drawn, dtype=np.float32)

    def step(self, action: Action) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Executes the scripted action, or the policy's with noise."""
        if self._script is not None:
            asked = self._script[self._step : self._step + 1]
        else:
            mean = float(checked_action(action)[0])
            asked = np.array(
                [truncated_normal(mean, self._sigma, self._search.rng)], dtype=np.float32
            )
        self._step += 1
        with isolated_randomness(), torch_threads(self._outer_threads):
            observation, _, terminated, truncated, info = super().step(asked)
        if not terminated:
            return observation, 0.0, terminated, truncated, info
        outcome = self._search.env.evaluate(CompressionPlan(info["plan"]))
        scalars = {"exploration/sigma": self._sigma, **self.scalars()}
        trial = self._search.record(outcome, self._source, scalars)
        centred = trial.reward - self._search.trials[0].reward
        return observation, centred, terminated, truncated, info
