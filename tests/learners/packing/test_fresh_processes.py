"""Packed files are read by a process that has quantized and cut nothing before."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.selection import quick
from torch import nn

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    UniformQuantization,
    WeightSparsification,
    joint_compression,
)
from amc_compress.learners.packing.packed_file import save_packed
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_env import CompressionEnv

BUILD = """
import torch
from torch import nn

def build():
    layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten()
    return nn.Sequential(*layers, nn.Linear(128, 4)).eval()
"""
LOAD = """
import torch
from built import build
from amc_compress.learners.packing.packed_file import load_packed

network = build()
network.load_state_dict(torch.load("original.pt", weights_only=True))
small = load_packed("small.packed", network)
with torch.no_grad():
    torch.save(small(torch.load("images.pt", weights_only=True)), "answers.pt")
"""
LEARNERS: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "channels": (ChannelPruning, "macs=0.6", {"round_to": 2}),
    "uniform": (UniformQuantization, "mean_bits=6/32", {}),
    "codebook": (CodebookQuantization, "mean_bits=6/32", {}),
    "sparse": (WeightSparsification, "params=0.5", {}),
    "joint": (
        joint_compression,
        "macs=0.6,bytes=0.3",
        {"pruning": {"round_to": 2}, "sparsification": {}},
    ),
}


@pytest.mark.parametrize("name", quick(LEARNERS, "uniform", "codebook"))
def test_a_fresh_process_reads_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "built.py").write_text(BUILD)
    made: dict[str, Any] = {}
    exec(BUILD, made)
    network: nn.Module = made["build"]()
    make, budget, options = LEARNERS[name]
    learner = make(network, EXAMPLE, make_data(32, 0), make_data(32, 1), **options)
    env = CompressionEnv(learner, budget)
    plan = env.decode(np.full(env.n_decisions, 0.5))
    small = learner.compress(plan)
    kept = learner.kept_units(plan) if hasattr(learner, "kept_units") else None
    save_packed(small, tmp_path / "small.packed", kept=kept, plan=plan, example_input=EXAMPLE)
    images = make_data(8, 2)[0][0]
    torch.save(network.state_dict(), tmp_path / "original.pt")
    torch.save(images, tmp_path / "images.pt")
    paths = os.pathsep.join([*sys.path, str(tmp_path)])
    subprocess.run(
        [sys.executable, "-c", LOAD],
        cwd=tmp_path,
        check=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    answers = torch.load(tmp_path / "answers.pt", weights_only=True)
    with torch.no_grad():
        torch.testing.assert_close(answers, small(images), rtol=0, atol=0)
