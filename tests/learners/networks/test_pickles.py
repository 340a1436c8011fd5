"""What is prepared in one script can be used in another one."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
from copyreg import dispatch_table
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    DiscriminationAwarePruning,
    GroupLassoPruning,
    RemasteredPruning,
    UniformQuantization,
    WeightSparsification,
    deep_compression,
    joint_compression,
)
from amc_compress.learners.testing.networks import EXAMPLE, make_data
from amc_env import CompressionEnv, CompressionPlan

QUICK = {"train": make_data(64, 1), "block_steps": 1, "layer_steps": 1, "channels_per_step": 8}
MAKE: dict[str, tuple[Any, str, dict[str, Any]]] = {
    "channels": (ChannelPruning, "macs=0.5", {"finetune_steps": 1, "train": make_data(64, 1)}),
    "group lasso": (GroupLassoPruning, "macs=0.5", {}),
    "remastered": (RemasteredPruning, "macs=0.5", {}),
    "discrimination": (DiscriminationAwarePruning, "macs=0.5", QUICK),
    "uniform": (UniformQuantization, "mean_bits=5/32", {}),
    "codebook": (CodebookQuantization, "mean_bits=5/32", {"weight_bits": (2, 4)}),
    "density": (WeightSparsification, "density=0.5", {}),
    "joint": (joint_compression, "macs=0.5", {}),
    "deep": (deep_compression, "density=0.6", {}),
}

# Nothing else is imported: neither this package nor torch.
SCRIPT = """
import pickle, sys
with open(sys.argv[1], "rb") as file:
    for name, env, plan in pickle.load(file):
        print(name, env.evaluate(plan).score)
"""


@pytest.fixture(scope="module")
def environments() -> dict[str, CompressionEnv]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 16, 3),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(16, 4),
        )
    data = EXAMPLE, make_data(32, 2), make_data(100, 3)
    small = {"n_validation": 50, "n_calibration": 32, "n_recalibration": 32}
    return {
        name: CompressionEnv(make(model, *data, **small, **options), budget)
        for name, (make, budget, options) in MAKE.items()
    }


@pytest.mark.slow
def test_every_environment_says_the_same_in_a_new_process(
    environments: dict[str, CompressionEnv], tmp_path: Path
) -> None:
    plans = {name: env.uniform_plan() for name, env in environments.items()}
    # Pickled first: an environment remembers what it has evaluated.
    file = tmp_path / "environments.pickle"
    file.write_bytes(pickle.dumps([(n, env, plans[n]) for n, env in environments.items()]))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(file)], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    expected = [f"{n} {env.evaluate(plans[n]).score}" for n, env in environments.items()]
    assert run.stdout.splitlines() == expected


def test_no_pickle_holds_more_than_what_its_tensors_show(
    environments: dict[str, CompressionEnv],
) -> None:
    for name, env in environments.items():
        wasted = []

        class Tensors(pickle.Pickler):
            def reducer_override(self, item: object) -> Any:
                if isinstance(item, Tensor):
                    whole = item.untyped_storage().nbytes()
                    wasted.append(whole - item.numel() * item.element_size())  # noqa: B023
                return NotImplemented

        Tensors(io.BytesIO()).dump(env)
        assert sum(wasted) == 0, name


def test_every_name_in_a_pickle_says_its_module(environments: dict[str, CompressionEnv]) -> None:
    """A memory format does not: it is looked for in whatever script was imported first."""
    for name, env in environments.items():
        homeless = []

        class Names(pickle.Pickler):
            def reducer_override(self, item: object) -> Any:
                if not isinstance(item, type | FunctionType) and type(item) not in dispatch_table:
                    is_name = isinstance(item.__reduce_ex__(4), str)
                    if is_name and getattr(item, "__module__", None) is None:
                        homeless.append(item)  # noqa: B023
                return NotImplemented

        Names(io.BytesIO()).dump(env)
        assert homeless == [], name


def test_half_of_a_symmetric_matrix_is_pickled(environments: dict[str, CompressionEnv]) -> None:
    learner = environments["channels"].learner
    assert isinstance(learner, ChannelPruning)
    for name, layer in learner._layers.items():
        written = pickle.dumps(layer)
        assert len(written) < 0.6 * layer.gram.nbytes + layer.target.nbytes * 2 + 4096
        twin = pickle.loads(written)
        assert torch.equal(twin.gram, layer.gram)
        kept = torch.arange(layer.shape[1] // 2)
        assert torch.equal(twin.solve(kept)[0], layer.solve(kept)[0]), name


def test_a_plan_of_a_pickled_learner_compresses_alike(
    environments: dict[str, CompressionEnv],
) -> None:
    images = make_data(16, 4)[0][0]
    for name, env in environments.items():
        learner: Any = env.learner
        twin = pickle.loads(pickle.dumps(learner))
        plan = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
        with torch.no_grad():
            first, second = (x.compress(plan)(images) for x in (learner, twin))
        assert torch.equal(first, second), name
