"""Channels last where a network takes it, contiguous where it does not."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc_compress.data.augmenting.parts import Augmentation
from amc_compress.data.loader import TensorLoader
from amc_compress.learners import (
    ChannelPruning,
    CodebookQuantization,
    UniformQuantization,
    WeightSparsification,
)
from amc_compress.learners.candidates.inference.held_samples import HeldSamples, settled_dtype
from amc_compress.learners.candidates.options import CandidateOptions
from amc_compress.learners.candidates.preparation import training_batches
from amc_compress.learners.joint.deep import deep_compression
from amc_compress.learners.networks.normalisation import Normalisation
from amc_compress.learners.numerics.layout import laid_out, set_layout, usable_layout
from amc_compress.learners.tasks.classification import CLASSIFICATION
from amc_compress.learners.tasks.inputs import Split
from amc_compress.learners.testing.networks import make_data
from amc_compress.learners.training.config import TrainingConfig
from amc_compress.learners.training.loop import evaluate, train
from amc_env import CompressionPlan


class LeNet(nn.Module):
    """``view`` of a map larger than 1 x 1, which fails on channels-last outputs."""

    def __init__(self, flatten: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6 * 16, 4)
        self.flatten = flatten

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.conv(x))), 2)
        return self.head(x.flatten(1) if self.flatten else x.view(x.shape[0], -1))


def lenet(flatten: bool = False) -> LeNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LeNet(flatten)


def test_a_network_that_views_its_maps_is_trained_and_evaluated_as_one_that_flattens_them() -> None:
    data = make_data(64, 1)
    config = TrainingConfig(epochs=2, learning_rate=0.02, ema_decay=0.9, precision="fp32")
    trained = []
    for flatten in (False, True):
        model, teacher = lenet(flatten), lenet(flatten)
        result = train(model, data, data, config, teacher=teacher)
        assert evaluate(model, data, precision="fp32") == result.best_score
        trained.append(model.state_dict())
    for key, value in trained[0].items():  # the layout decides the order of sums
        torch.testing.assert_close(value, trained[1][key], rtol=1e-3, atol=1e-5)


def test_a_loader_of_validation_images_leaves_the_global_generator_alone() -> None:
    images, labels = (torch.cat(part) for part in zip(*make_data(64, 1), strict=True))
    loader = DataLoader(TensorDataset(images, labels), 32, shuffle=True)
    state = torch.get_rng_state()
    evaluate(lenet(), loader, precision="fp32")
    train(lenet(), make_data(64, 1), loader, TrainingConfig(epochs=1, precision="fp32"))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_network_of_three_dimensions_is_pruned_trained_and_evaluated() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv3d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3), nn.ReLU(),
            nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(8, 4),
        )  # fmt: skip
    data = [(x[..., None].repeat(1, 1, 1, 1, 3), y) for x, y in make_data(64, 1)]
    learner = ChannelPruning(model, data[0][0][:1], data, data, precision="fp32", round_to=4)
    cut = learner.compress(CompressionPlan({d.key: d.nearest(0.5) for d in learner.decisions}))
    result = learner.finetune(cut, data, config=TrainingConfig(epochs=1, precision="fp32"))
    assert evaluate(cut, data, precision="fp32") == result.best_score


def test_trying_the_layout_leaves_modes_statistics_and_random_numbers_alone() -> None:
    model = lenet().train()
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    assert usable_layout(model, make_data(32, 1)[0][0]) == torch.contiguous_format
    assert usable_layout(lenet(flatten=True), make_data(32, 1)[0][0]) == torch.channels_last
    assert model.training
    assert model.norm.training
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("learner", [UniformQuantization, CodebookQuantization])
def test_a_network_that_views_its_maps_is_quantized_as_one_that_flattens_them(
    learner: Any,
) -> None:
    data, config = make_data(64, 1), TrainingConfig(epochs=1, precision="fp32")
    options: dict[str, Any] = {"train": data, "precision": "fp32", "first_last_bits": None}
    found = []
    for flatten in (False, True):
        given = learner(lenet(flatten), data[0][0][:1], data, data, finetune_steps=2, **options)
        plan = given.fixed_plan(4)
        network = given.compress(plan)
        outputs = torch.cat([network(x) for x, _ in data]).detach()
        found.append((outputs, given.original_accuracy, given.evaluate(plan)))
        result = given.finetune(network, data, config=config)
        assert evaluate(network, data, precision="fp32") == result.best_score
    # A number between two values may be rounded either way, which can turn an image or two.
    (outputs, *accuracies), (expected, *others) = found
    assert (outputs - expected).norm() < 0.02 * expected.norm()
    assert accuracies == pytest.approx(others, abs=2 / 64 + 1e-9)


@pytest.mark.slow
def test_a_network_that_views_its_maps_is_sparsified_alone_and_with_bits() -> None:
    data, config = make_data(64, 1), TrainingConfig(epochs=1, precision="fp32")
    options: dict[str, Any] = {"train": data, "finetune_steps": 2, "precision": "fp32"}
    given = lenet(False), data[0][0][:1], data, data
    for learner in (WeightSparsification(*given, **options), deep_compression(*given, **options)):
        smallest = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
        assert 0.0 <= learner.evaluate(smallest) <= 1.0
        network = learner.compress(smallest)
        assert network(data[0][0]).isfinite().all()
        assert len(learner.finetune(network, data, config=config).history) == 1


def test_the_seed_decides_which_training_batches_a_quantizer_sees() -> None:
    images, labels = (torch.cat(part) for part in zip(*make_data(64, 1), strict=True))
    loader = DataLoader(TensorDataset(images, labels), 32, shuffle=True)
    state = torch.get_rng_state()
    read: Any = SimpleNamespace(
        task=CLASSIFICATION,
        probed=SimpleNamespace(check=lambda *_: None),
        example=images[:1],
        device=torch.device("cpu"),
        layout=torch.contiguous_format,
    )
    first, again, other = (
        training_batches(read, CandidateOptions(finetune_steps=1, train=loader, seed=seed))[0][0]
        for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(4, 1, 6, 6), (4, 3, 1, 1), (1, 1, 1, 5), (2, 3, 4, 5), (3, 7)])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_images_have_the_strides_of_their_layout_whatever_they_had_before(shape, layout):
    """An axis of length 1 leaves the stride open, and convolutions go by the stride."""
    plain = torch.rand(shape)
    seen = {laid_out(plain, layout).stride()}
    if len(shape) == 4:
        for other in (torch.channels_last, torch.contiguous_format):
            seen.add(laid_out(plain.clone(memory_format=other), layout).stride())
        moved = plain.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
        seen.add(laid_out(moved, layout).stride())
        assert torch.equal(laid_out(moved, layout), plain)
    assert len(seen) == 1


class OneChannelLeNet(LeNet):
    """The network of many tutorials."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 6, 3, padding=1)


@pytest.mark.parametrize("augmented", [False, True])
def test_a_network_of_one_channel_that_views_its_maps_trains_from_our_loader(augmented) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = OneChannelLeNet()
        pixels = torch.randint(0, 256, (48, 1, 8, 8), dtype=torch.uint8)
    for images in (pixels, pixels.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)):
        loader = TensorLoader(
            images, torch.arange(48) % 4, Normalisation(255.0, (0.5,), (0.25,)), batch_size=16,
            shuffle=True, augmentation=Augmentation(pad=1) if augmented else None,
        )  # fmt: skip
        config = TrainingConfig(epochs=1, learning_rate=0.01, precision="fp32")
        assert len(train(copy.deepcopy(model), loader, loader, config).history) == 1
        learner = ChannelPruning(model, pixels[:1].float(), loader, loader, round_to=2)
        small = learner.compress(CompressionPlan({d.key: d.choices[0] for d in learner.decisions}))
        assert len(learner.finetune(small, loader, epochs=1, config=config).history) == 1


def laid_out_in_inference(network: nn.Module, layout: torch.memory_format) -> None:
    with torch.inference_mode():
        set_layout(network, layout)


def settled(network: nn.Module, layout: torch.memory_format) -> None:
    images = torch.rand(4, 3, 8, 8)
    settled_dtype([network], images, torch.bfloat16, fused=False, layout=layout)


def evaluated(network: nn.Module, layout: torch.memory_format) -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    evaluator = HeldSamples(
        [Split(torch.rand(4, 3, 8, 8), labels)], dtype=torch.float32, device=torch.device("cpu"),
        fused=False, layout=layout,
    )  # fmt: skip
    evaluator.logits(network)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("use", [laid_out_in_inference, settled, evaluated])
def test_what_is_evaluated_can_be_trained_afterwards(use: Any, layout: torch.memory_format) -> None:
    network = LeNet(flatten=True)
    use(network, torch.channels_last)
    use(network, layout)
    network(torch.rand(2, 3, 8, 8)).sum().backward()
    assert all(p.grad is not None and not p.is_inference() for p in network.parameters())
