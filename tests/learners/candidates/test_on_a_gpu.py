"""Moments, sweeps and levels on a GPU: they stay there, and find what they find without one."""

from __future__ import annotations

import pytest
import torch

from amc_compress.learners import ChannelPruning, UniformQuantization, WeightSparsification
from amc_compress.learners.joint.prepare import joint_compression
from amc_compress.learners.testing.networks import EXAMPLE, Residual, make_data
from amc_env.plan import CompressionPlan

BITS = {"rounding": "gptq", "weight_bits": (3, 4), "activation_bits": 16}
LEARNERS = {
    "gptq": (UniformQuantization, BITS | {"granularity": "group", "group_size": 16}),
    "sparsegpt": (WeightSparsification, {"repair": "sparsegpt"}),
    "least squares": (WeightSparsification, {"pattern": "2:4"}),
    "channels": (ChannelPruning, {"round_to": 2}),
    "one sweep": (
        joint_compression,
        {"pruning": {}, "sparsification": {"repair": "sparsegpt"}, "quantization": BITS},
    ),
}


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("memory", [2**31, 1])
@pytest.mark.parametrize("kind", LEARNERS)
def test_learners_find_on_a_gpu_what_they_find_without(kind, memory):
    make, options = LEARNERS[kind]
    train, validation = make_data(96, 0), make_data(64, 1)
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        given = {"n_calibration": 64, "device": device, "moments_memory": memory, **options}
        learner = make(Residual().eval(), EXAMPLE, train, validation, precision="fp32", **given)
        plan = CompressionPlan({d.key: d.choices[len(d.choices) // 2] for d in learner.decisions})
        network = learner.compress(plan)
        assert {x.device.type for x in network.state_dict().values()} == {device}
        with torch.no_grad():
            outputs = network(validation[0][0].to(device)).cpu()
        found.append((outputs, learner.evaluate(plan), learner.layer_errors()))
    (expected, score, errors), (outputs, other, more) = found
    assert (outputs - expected).norm() < 0.05 * expected.norm()  # a tie may round elsewhere
    assert other == pytest.approx(score, abs=0.05)
    for key, curve in errors.items():
        assert more[key] == pytest.approx(curve, rel=0.05, abs=1e-4)
