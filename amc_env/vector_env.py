"""Several episodes in lock step, whose plans are evaluated together."""

from __future__ import annotations

import copy
from typing import Any

import gymnasium as gym
from gymnasium.vector import SyncVectorEnv

from amc_env.env import CompressionEnv
from amc_env.validation.checks import checked


@checked
class CompressionVectorEnv(SyncVectorEnv):
    """Copies of a compression environment that make their decisions at the same time.

    All episodes have equally many steps, so that all end in the same one: the plans of that step
    which have no score yet are submitted together to the environment's evaluations service. All
    else is what Gymnasium's ``SyncVectorEnv`` of as many environments does, observations, rewards
    and infos included.

    Args:
        env: A ``CompressionEnv``, bare or as ``gymnasium.make`` wraps it; it is copied, and its
            scores are those of the copies.
        num_envs: How many.
        options: Those of ``SyncVectorEnv``, ``autoreset_mode`` for one.

    Attributes:
        problem: That environment, bare.

    Raises:
        TypeError: If it is no compression environment.
    """

    def __init__(self, env: gym.Env[Any, Any], num_envs: int, **options: Any) -> None:
        bare = env.unwrapped
        if not isinstance(bare, CompressionEnv):
            raise TypeError(f"Expected a CompressionEnv, got {type(bare).__name__}.")
        if num_envs < 1:
            raise ValueError(f"Expected num_envs >= 1, got {num_envs}.")
        self.problem: CompressionEnv = bare
        self._twins = [copy.deepcopy(bare) for _ in range(num_envs)]
        for twin in self._twins:
            twin.scores = bare.scores
        super().__init__([lambda twin=twin: twin for twin in self._twins], **options)  # type: ignore[misc]

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Executes one decision of every episode.

        Args:
            actions: Shape ``(num_envs, 1)``, in [0, 1].

        Raises:
            ValueError: If there are more or fewer than episodes.
        """
        if len(actions) != self.num_envs:
            raise ValueError(
                f"Expected {self.num_envs} actions, one for each episode, got {len(actions)}."
            )
        finished = [twin.finished_by(a) for twin, a in zip(self._twins, actions, strict=False)]
        if plans := [plan for plan in finished if plan is not None]:
            self.problem.submit(plans)
        return super().step(actions)
