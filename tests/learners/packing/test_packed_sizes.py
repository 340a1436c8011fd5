"""The size that costs promise is the size of the file, within 3%."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.selection import quick

from amc_compress.learners.quantization import (
    CodebookQuantization,
    UniformQuantization,
    save_packed,
)
from amc_compress.models import make_model
from amc_env import CompressionPlan

LEARNERS = {
    "codebook": (CodebookQuantization, {}),
    "codebook per channel": (CodebookQuantization, {"granularity": "channel"}),
    "uniform": (UniformQuantization, {}),
    "affine": (UniformQuantization, {"symmetric": False}),
    "affine, split": (
        UniformQuantization,
        {"granularity": "split", "bucket_size": 50, "symmetric": False},
    ),
    "groups": (UniformQuantization, {"granularity": "group", "group_size": 32}),
    "affine groups": (
        UniformQuantization,
        {"granularity": "group", "group_size": 64, "symmetric": False},
    ),
    "codebook, split": (CodebookQuantization, {"granularity": "split"}),
}


def check(network: str, kind: str, tmp_path, shape: tuple[int, int, int], **options) -> None:
    model = make_model(network, in_channels=shape[0])
    generator = torch.Generator().manual_seed(0)
    data = [(torch.randn(8, *shape, generator=generator), torch.arange(8))]
    learner_class, settings = LEARNERS[kind]
    learner = learner_class(
        model, torch.zeros(1, *shape), data, data, proxy="none", **settings, **options
    )
    bytes_cost = learner.cost_models["bytes"]
    rng = np.random.default_rng(0)
    plans = [learner.fixed_plan(bits) for bits in range(2, 9)]
    for _ in range(3):
        values = [d.choices[rng.integers(len(d.choices))] for d in learner.decisions]
        plans.append(CompressionPlan.from_values(learner.decisions, values))
    errors = []
    for index, plan in enumerate(plans):
        size = save_packed(learner.compress(plan), tmp_path / "net", plan=plan)
        assert size == (tmp_path / "net").stat().st_size
        errors.append(bytes_cost(plan.values_for(learner.decisions)) / size - 1)
        assert abs(errors[-1]) < 0.03, (index, errors)


@pytest.mark.parametrize("kind", quick(LEARNERS, "affine, split", "groups"))
def test_digitsnet(kind, tmp_path):
    check("digitsnet", kind, tmp_path, (1, 8, 8))


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNERS)
def test_resnet20(kind, tmp_path):
    check("resnet20", kind, tmp_path, (3, 32, 32))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codebook", "uniform"])
def test_resnet20_with_floats_and_decided_inputs(kind, tmp_path):
    check(
        "resnet20",
        kind,
        tmp_path,
        (3, 32, 32),
        weight_bits=(*range(2, 9), 16),
        activation_bits=(4, 8, 16),
        first_last_bits=None,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["codebook", "uniform"])
def test_mobilenet_v2(kind, tmp_path):
    check("mobilenet_v2_fast", kind, tmp_path, (3, 32, 32))
