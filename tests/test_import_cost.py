"""Importing brings what is used, and no more: names of a package are imported when first used."""

from __future__ import annotations

import subprocess
import sys

import pytest

import amc_compress
from amc_compress import agents, learners

HEAVY = {
    "stable_baselines3", "sklearn", "scipy.stats", "pandas", "matplotlib", "onnx", "onnxruntime",
    "onnxscript", "optuna", "tensorboard", "pyarrow", "PIL", "torchmetrics", "pycocotools",
}  # fmt: skip
STEPS = """
import amc_compress, amc_compress.agents, amc_compress.learners, sys
print(*sys.modules)
for name in amc_compress.learners.__all__: getattr(amc_compress.learners, name)
print(*sys.modules)
from amc_compress.agents import Agent, LocalSearch, RandomSearch, Trial
print(*sys.modules)
"""


def test_importing_brings_no_more_than_is_used():
    done = subprocess.run([sys.executable, "-c", STEPS], capture_output=True, text=True, check=True)
    packages, every_learner, simple_agents = (set(s.split()) for s in done.stdout.splitlines())
    assert not packages & {"torch", "numpy", "gymnasium"}
    assert not every_learner & (HEAVY | {"amc_compress.agents.base"})
    assert not simple_agents & HEAVY


@pytest.mark.parametrize("package", [amc_compress, agents, learners])
def test_every_public_name_is_there_and_listed(package):
    assert set(package.__all__) <= set(dir(package))
    for name in package.__all__:
        assert getattr(package, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = package.no_such_name
