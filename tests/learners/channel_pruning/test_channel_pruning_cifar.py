"""ResNet-20 on CIFAR-10 from the public checkpoint: what the repairs are worth, and their price."""

from __future__ import annotations

import time

import pytest
import torch

from amc_compress.data import load_data
from amc_compress.learners import ChannelPruning
from amc_compress.models import load_weights, make_model
from amc_env import Budget, CompressionEnv

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def prepared(shared_data):
    splits = load_data(str(shared_data / "data" / "cifar10"))
    model = make_model("resnet20")
    load_weights(model, shared_data / "checkpoints" / "resnet20_cifar10.safetensors")

    def make(**options):
        return ChannelPruning(
            model,
            torch.zeros(1, 3, 32, 32),
            splits.calibration,
            splits.validation,
            n_validation=1000,
            **options,
        )

    return make


def test_repairs_save_a_resnet_at_half_the_macs(prepared):
    accuracy = {}
    for proxy in ("none", "recalibration", "reconstruction+recalibration"):
        learner = prepared(proxy=proxy)
        plan = CompressionEnv(learner, Budget(macs=0.5)).uniform_plan()
        accuracy[proxy] = learner.evaluate(plan)
    assert learner.original_accuracy > 0.88
    assert accuracy["none"] < accuracy["recalibration"]
    assert accuracy["reconstruction+recalibration"] > accuracy["recalibration"] + 0.03


def test_bf16_and_float32_evaluate_alike_and_bf16_is_no_slower(prepared):
    seconds, accuracy = {}, {}
    for precision in ("fp32", "bf16"):
        learner = prepared(precision=precision)
        plan = CompressionEnv(learner, Budget(macs=0.5)).uniform_plan()
        times = []
        for _ in range(3):
            start = time.process_time()
            accuracy[precision] = learner.evaluate(plan)
            times.append(time.process_time() - start)
        seconds[precision] = min(times)
    assert accuracy["bf16"] == pytest.approx(accuracy["fp32"], abs=0.015)
    if getattr(torch.cpu, "_is_avx512_bf16_supported", bool)():
        assert seconds["bf16"] < seconds["fp32"]
