"""A search policy of your own on the environment, with nothing but Gymnasium and NumPy.

The cross-entropy method: draw actions around a mean, keep the best fifth, move the mean there.

    python experiments/examples/own_policy.py
    python experiments/examples/own_policy.py amc_env:amc/synthetic-v0 200
"""

from __future__ import annotations

import sys
from typing import Any

import gymnasium
import numpy as np

Env = gymnasium.Env[Any, Any]
Found = tuple[float, dict[str, Any]]  # a reward and the info that came with it


def run_episode(env: Env, actions: np.ndarray) -> Found:
    """Plays one action per decision; returns the final reward and the last step's info."""
    env.reset()
    for action in actions:
        _, reward, terminated, _, info = env.step(np.array([action], dtype=np.float32))
    assert terminated  # noqa: S101
    return float(reward), info


def search(env_id: str, episodes: int, seed: int = 0, batch: int = 10) -> Found:
    """Returns the best reward of the search and the info that came with it."""
    env = gymnasium.make(env_id)
    rng = np.random.default_rng(seed)
    n = env.get_wrapper_attr("n_decisions")
    mean, spread = np.full(n, 0.5), np.full(n, 0.25)  # 0.5 everywhere is the uniform plan
    best: Found = (-np.inf, {})
    for _ in range(episodes // batch):
        actions = np.clip(rng.normal(mean, spread, size=(batch, n)), 0.0, 1.0)
        results = [run_episode(env, row) for row in actions]
        rewards = np.array([reward for reward, _ in results])
        best = max([best, *results], key=lambda result: result[0])
        elite = actions[np.argsort(rewards)[-max(2, batch // 5) :]]
        mean, spread = elite.mean(axis=0), elite.std(axis=0) + 0.02
        print(f"best {best[0]:.4f}   this batch {rewards.mean():.4f}")
    return best


if __name__ == "__main__":
    task = sys.argv[1] if len(sys.argv) > 1 else "amc_env:amc/digits-channels-v0"
    reward, info = search(task, int(sys.argv[2]) if len(sys.argv) > 2 else 100)
    print(f"reward {reward:.4f} at cost ratios {info['cost_ratio']}")
    for decision, value in info["plan"].items():
        print(f"{decision:<40} {value:.3f}")
