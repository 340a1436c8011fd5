"""Replay buffers that store what was executed and know that only the last reward counts.

A compression episode has a fixed length T, reward 0 until its last step and ``terminated`` there.
Rewards arrive centred on the uniform plan's and are divided by their spread when sampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, ReplayBuffer
from stable_baselines3.common.type_aliases import ReplayBufferSamples
from stable_baselines3.common.vec_env import VecNormalize

_BASELINE_RATE = 0.5
_MIN_SPREAD = 1e-6  # of the largest reward: less is rounding
_LARGEST = 1e15


def executed_actions(infos: list[dict[str, Any]], space: spaces.Box) -> npt.NDArray[np.float32]:
    """Returns the actions that took effect, rescaled to SB3's [-1, 1], shape ``(n_envs, 1)``."""
    executed = np.stack([info["executed_action"] for info in infos])
    scaled: npt.NDArray[np.float32] = 2 * (executed - space.low) / (space.high - space.low) - 1
    return scaled.astype(np.float32)


class ExecutedActionBuffer(ReplayBuffer):
    """Replaces the asked action by the executed one, and normalises rewards on sampling."""

    reward_scale: float = 1.0

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores a transition with the action that ``infos`` says was executed."""
        assert isinstance(self.action_space, spaces.Box)
        executed = executed_actions(infos, self.action_space)
        # Beyond this, squares would leave single precision; they say no more than "very bad".
        reward = np.clip(reward, -_LARGEST, _LARGEST)
        super().add(obs, next_obs, executed, reward, done, infos)

    def fix_reward_scale(self) -> None:
        """Makes the spread of the final rewards stored so far the unit of all sampled rewards."""
        filled = self.buffer_size if self.full else self.pos
        final = self.rewards[:filled][self.dones[:filled] > 0]
        spread = float(final.std()) if len(final) else 0.0
        if spread > _MIN_SPREAD * float(np.abs(final).max(initial=0.0)):
            self.reward_scale = spread

    def _get_samples(
        self, batch_inds: npt.NDArray[Any], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(rewards=samples.rewards / self.reward_scale)


class MonteCarloBuffer(ExecutedActionBuffer, NStepReplayBuffer):
    """Gives every step of an episode the final reward as its target; nothing is bootstrapped.

    SB3's n-step returns with ``n_steps`` = episode length and gamma = 1. Correct as long as updates
    happen between episodes: inside one, the running episode would be cut and bootstrapped.
    """


class BroadcastBuffer(ExecutedActionBuffer):
    """AMC's credit (He et al. 2018, Eq. 5): the final reward R copied to every step, one-step TD.

    The target of step t is ``(R - b) + Q'(t + 1)``, with ``b`` a moving mean of the rewards sampled
    so far, so ``Q(t)`` estimates ``(T - t)(R - b)``.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._length = np.zeros(self.n_envs, dtype=np.int64)
        self._baseline: float | None = None

    def add(
        self,
        obs: npt.NDArray[Any],
        next_obs: npt.NDArray[Any],
        action: npt.NDArray[Any],
        reward: npt.NDArray[Any],
        done: npt.NDArray[Any],
        infos: list[dict[str, Any]],
    ) -> None:
        """Stores a transition; the last one of an episode writes its reward into all of them."""
        row = self.pos
        super().add(obs, next_obs, action, reward, done, infos)
        self._length += 1
        for i in np.flatnonzero(done):
            rows = (row - np.arange(self._length[i])) % self.buffer_size
            self.rewards[rows, i] = reward[i]
            self._length[i] = 0

    def _get_samples(
        self, batch_inds: npt.NDArray[Any], env: VecNormalize | None = None
    ) -> ReplayBufferSamples:
        samples = super()._get_samples(batch_inds, env)
        mean = float(samples.rewards.mean())
        before = mean if self._baseline is None else self._baseline
        self._baseline = before + _BASELINE_RATE * (mean - before)
        return samples._replace(rewards=samples.rewards - self._baseline)
