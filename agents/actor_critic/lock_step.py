"""Episodes side by side, in lock step: all of them end with the same step."""

from __future__ import annotations

import copy
from collections.abc import Sequence

from stable_baselines3.common.vec_env import DummyVecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from amc_compress.agents.actor_critic.exploring_env import ExploringEnv
from amc_compress.agents.determinism import isolated_randomness
from amc_compress.agents.rollout import Search
from amc_env import CompressionEnv


def side_by_side(env: CompressionEnv, count: int) -> list[CompressionEnv]:
    """Returns an environment and copies of it that know the same scores."""
    return [env, *(copy.deepcopy(env, {id(env.scores): env.scores}) for _ in range(count - 1))]


class LockStep(DummyVecEnv):
    """Steps environments one after the other; asks for all plans of a round before its last step.

    Steps are arithmetic, so they run in this process. The plans that a round ends with are
    submitted together, whatever evaluates works on all of them, and trials are recorded in the
    order of the environments.

    Args:
        search: Asks for the plans.
        envs: Their episodes have the same length.
    """

    def __init__(self, search: Search, envs: Sequence[ExploringEnv]) -> None:
        self._search = search
        self._lanes = envs
        super().__init__([lambda env=env: env for env in envs])  # type: ignore[misc]

    def step_wait(self) -> VecEnvStepReturn:
        """Takes the step of every environment."""
        if len(self._lanes) > 1 and self._lanes[0].is_at_last_step:
            found = [
                lane.foresee(action) for lane, action in zip(self._lanes, self.actions, strict=True)
            ]
            with isolated_randomness():
                self._search.env.submit([plan for plan in found if plan is not None])
        return super().step_wait()
