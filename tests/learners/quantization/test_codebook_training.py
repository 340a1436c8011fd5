"""Fine-tuning of codebooks: what each mode trains, and that it helps."""

from __future__ import annotations

import copy

import pytest
import torch
from support.once import copies
from support.selection import quick
from torch import nn

from amc_compress.learners.quantization import CodebookQuantization, quantized_layers
from amc_compress.learners.quantization.codebook.learner import set_mode
from amc_compress.learners.testing.networks import EXAMPLE, make_data, make_model
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate
from amc_compress.learners.training.stepper import make_optimizer


@copies
def prepared(name: str = "residual", **options) -> CodebookQuantization:
    return CodebookQuantization(
        make_model(name),
        EXAMPLE,
        make_data(96, 2),
        make_data(200, 3),
        weight_bits=(2, 3, 8),
        **options,
    )


def changed(network: nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    return {k for k, v in network.state_dict().items() if not torch.equal(v, before[k])}


@pytest.mark.parametrize("granularity", quick(["tensor", "split"], "tensor"))
@pytest.mark.parametrize("mode", ["weights", "clusters", "both"])
def test_each_mode_trains_what_it_says_and_nothing_else(mode, granularity):
    learner = prepared(mode=mode, granularity=granularity)
    network = learner.compress(learner.fixed_plan(3))
    before = copy.deepcopy(network.state_dict())
    layers = quantized_layers(network)
    codes = {n: x.weight_quantizer.encode(x.weight) for n, x in layers.items()}
    config = TrainingConfig(learning_rate=0.01, precision="fp32")
    learner.finetune(network, make_data(512, 1), epochs=1, config=config)
    centroids = {f"{name}.weight_quantizer.codebook" for name in layers}
    weights = {f"{name}.{part}" for name in layers for part in ("weight", "bias")}
    expected = {"weights": weights, "clusters": centroids, "both": weights | centroids}[mode]
    assert changed(network, before) == expected
    moved = any(
        not torch.equal(x.weight_quantizer.encode(x.weight), codes[n]) for n, x in layers.items()
    )
    assert moved == (mode != "clusters")


@pytest.mark.parametrize("mode", quick(["weights", "clusters", "both"], "both"))
def test_training_lowers_the_loss_at_two_bits(mode):
    learner = prepared(mode=mode)
    network = learner.compress(learner.fixed_plan(2))
    images = torch.cat([x for x, _ in make_data(256, 1)])
    labels = torch.cat([y for _, y in make_data(256, 1)])

    def loss() -> float:
        with torch.no_grad():
            return float(nn.functional.cross_entropy(network.eval()(images), labels))

    before = loss()
    learner.finetune(network, make_data(256, 1), epochs=4, validation=make_data(256, 1))
    assert loss() < 0.95 * before


@pytest.mark.slow
def test_steps_before_evaluation_follow_the_mode():
    accuracies = set()
    for mode in ("weights", "clusters", "both"):
        learner = prepared(mode=mode, finetune_steps=4, train=make_data(128, 1))
        plan = learner.fixed_plan(2)
        accuracies.add(learner.evaluate(plan))
        assert learner.evaluate(plan) in accuracies
    assert all(accuracy > 0.25 for accuracy in accuracies)  # better than chance


def test_the_mode_of_a_network_can_be_changed():
    learner = prepared(mode="clusters")
    network = learner.compress(learner.fixed_plan(3))
    assert all(
        x.weight_quantizer.assignments is not None for x in quantized_layers(network).values()
    )
    set_mode(network, "weights")
    trainable = {n for n, p in network.named_parameters() if p.requires_grad}
    assert trainable == {n for n, _ in network.named_parameters() if "codebook" not in n}
    assert all(x.weight_quantizer.assignments is None for x in quantized_layers(network).values())
    with pytest.raises(ValueError, match="clusters"):
        set_mode(network, "cluster")


@pytest.mark.parametrize("init", ["kmeans", "quantile", "uniform"])
def test_more_bits_lose_less(init):
    learner = prepared(init=init, n_calibration=64)
    for curve in learner.layer_errors().values():
        assert curve[-1] < 0.01
        assert curve[0] > curve[-1]
    if init == "kmeans":
        accuracy = evaluate(learner.compress(learner.fixed_plan(8)), make_data(200, 3))
        assert accuracy == pytest.approx(learner.original_accuracy, abs=0.03)


def test_unknown_names_are_rejected_before_work_is_done():
    for option in ({"mode": "cluster"}, {"init": "kmeans++"}, {"granularity": "layer"}):
        with pytest.raises(ValueError, match=next(iter(option.values())).replace("+", r"\+")):
            prepared(**option)


def test_weight_decay_leaves_centroids_alone():
    learner = prepared(granularity="channel", proxy="none")
    network = learner.compress(learner.fixed_plan(3))
    groups = make_optimizer(network, TrainingConfig(weight_decay=0.1)).param_groups
    decay = {p: group["weight_decay"] for group in groups for p in group["params"]}
    for layer in quantized_layers(network).values():
        assert layer.weight_quantizer.codebook.ndim == 2
        assert (decay[layer.weight], decay[layer.weight_quantizer.codebook]) == (0.1, 0.0)
