"""RL Baselines3 Zoo trains on the ids as they are; needs the extra `zoo`."""

from __future__ import annotations

import csv
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("rl_zoo3") is None,
        reason='RL Baselines3 Zoo is not installed: pip install "amc-compress[zoo]"',
    ),
]

RECIPE = Path(__file__).parents[3] / "experiments" / "recipes" / "rl_zoo3.yml"


def train(folder: Path, task: str, *options: str) -> list[dict[str, str]]:
    """Runs the zoo's own command and returns the rows of its monitor file."""
    command = [sys.executable, "-m", "rl_zoo3.train", "--gym-packages", "amc_env", "--env", task]
    done = subprocess.run(
        [*command, "-f", str(folder), "--eval-freq", "-1", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    name = task.replace("/", "-")
    (run,) = folder.glob(f"*/{name}_1")
    assert (run / f"{name}.zip").exists()
    lines = (run / "0.monitor.csv").read_text().splitlines()
    return list(csv.DictReader(lines[1:]))


def test_ppo_with_the_zoos_defaults_plays_whole_episodes(tmp_path: Path) -> None:
    short = ("-n", "240", "-params", "n_steps:120", "batch_size:60")
    episodes = train(tmp_path, "amc/synthetic-v0", "--algo", "ppo", *short)
    assert [row["l"] for row in episodes] == ["12"] * 20
    assert all(0.0 < float(row["r"]) < 1.0 for row in episodes)


def test_ddpg_with_the_recipe_plays_whole_episodes(tmp_path: Path) -> None:
    recipe = ("--algo", "ddpg", "--conf-file", str(RECIPE), "-n", "104")
    episodes = train(tmp_path, "amc/digits-channels-v0", *recipe)
    assert [row["l"] for row in episodes] == ["8"] * 13
