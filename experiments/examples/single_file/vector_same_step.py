"""Copies of an environment in lock step, each reset within the step that ends its episode.

All episodes of a task have the same length, so all copies finish together, and asynchronous copies
evaluate their plans at the same time::

    python vector_same_step.py amc_env:amc/synthetic-v0 --num-envs 8
    python vector_same_step.py amc_env:amc/digits-channels-v0 --num-envs 2 --mode async
"""

from __future__ import annotations

import argparse
from typing import Any

import gymnasium
import numpy as np

Found = tuple[float, dict[str, float]]  # an accuracy and the plan that has it


def copy_of(values: dict[str, Any], index: int) -> dict[str, float]:
    """Returns one copy's part of a dictionary in a vector environment's infos.

    Keys that begin with an underscore are masks: which copies have the key.
    """
    return {
        key: float(column[index])
        for key, column in values.items()
        if not key.startswith("_") and values["_" + key][index]
    }


def search(env_id: str, num_envs: int, episodes: int, mode: str = "sync", seed: int = 0) -> Found:
    """Plays ``episodes`` of each copy around the action 0.5, the uniform plan; returns the best."""
    rng = np.random.default_rng(seed)
    best: Found = (-np.inf, {})
    envs = gymnasium.make_vec(
        env_id,
        num_envs,
        vectorization_mode=mode,
        vector_kwargs={"autoreset_mode": gymnasium.vector.AutoresetMode.SAME_STEP},
    )
    envs.reset(seed=seed)
    finished = 0
    while finished < episodes * num_envs:
        actions = rng.normal(0.5, 0.15, size=(num_envs, 1)).clip(0.0, 1.0).astype(np.float32)
        _, _, terminated, _, infos = envs.step(actions)
        for index in np.flatnonzero(terminated).tolist():
            final = infos["final_info"]  # infos itself already speaks of the next episode
            accuracy = float(final["accuracy"][index])
            best = max(best, (accuracy, copy_of(final["plan"], index)), key=lambda found: found[0])
            finished += 1
    envs.close()
    return best


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("env_id", nargs="?", default="amc_env:amc/synthetic-v0")
    parser.add_argument("--num-envs", type=int, default=4)
    parser.add_argument("--episodes", type=int, default=25, help="of each copy")
    parser.add_argument("--mode", choices=["sync", "async"], default="sync")
    parser.add_argument("--seed", type=int, default=0)
    accuracy, plan = search(**vars(parser.parse_args()))
    print(f"accuracy {accuracy:.4f}")
    for decision, value in plan.items():
        print(f"{decision:<40} {value:.3f}")
