"""A user's folders and other packages may have the names of the folders of this repository."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NET = """
import learners
from torch import nn

def make(n_classes, in_channels, image_size):
    return nn.Sequential(
        nn.Conv2d(in_channels, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, n_classes)
    )
"""
SCRIPT = """
import agents, experiments, learners

{readme}
import gymnasium

gymnasium.make("amc_env:amc/digits-channels-v0", budget="macs=0.3").reset(seed=0)
assert not hasattr(agents, "OneShotDDPG") and not hasattr(learners, "ChannelPruning")
assert agents.__name__ == "agents" and {runner} == hasattr(agents, "Runner")

import runpy, sys

sys.argv = "amc train --model experiments.net:make --epochs 1 --out run --quiet".split()
runpy.run_module("amc_compress", run_name="__main__", alter_sys=True)  # as python -m does
"""


def readmes_script() -> str:
    """The Python example of the README, with fewer epochs and evaluations."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(from amc_compress import compress.*?)```", text, re.DOTALL)
    return re.sub(r"(epochs|evaluations)=\d+", r"\1=1", block)


@pytest.mark.parametrize(
    ("inits", "other_package"),
    [(True, True), pytest.param(False, False, marks=pytest.mark.slow)],
    ids=["packages, and agents of another distribution", "folders"],
)
def test_folders_with_our_names_change_nothing(inits, other_package, tmp_path):
    mine, site = tmp_path / "mine", tmp_path / "site-packages"
    folders = [mine / "learners", mine / "experiments"]
    folders.append((site if other_package else mine) / "agents")
    for folder in folders:
        folder.mkdir(parents=True)
        if inits:
            (folder / "__init__.py").touch()
    if other_package:  # as openai-agents is
        (site / "agents" / "__init__.py").write_text("class Agent: ...\nclass Runner: ...\n")
    (mine / "experiments" / "net.py").write_text(NET)
    script = SCRIPT.format(readme=readmes_script(), runner=other_package)
    (mine / "script.py").write_text(script)
    path = os.pathsep.join(filter(None, [str(site), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=mine, env={**os.environ, "PYTHONPATH": path},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (mine / "run" / "model.safetensors").exists()
