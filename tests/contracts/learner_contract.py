"""What every learner must keep; a learner's test class inherits this and builds the learner."""

from __future__ import annotations

import copy
import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import nn

from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.cost import make_cost
from amc_env.errors import PlanMismatchError
from learners.base import Learner
from learners.training import TrainingConfig

EXAMPLE = torch.zeros(1, 3, 8, 8)
CLASSES = 4


def plain() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 24, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(24 * 16, 20),
        nn.ReLU(),
        nn.Linear(20, CLASSES),
    )


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn0 = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.conv3 = nn.Conv2d(16, 32, 3, stride=2, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(32)
        self.head = nn.Linear(32, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn0(self.conv_in(x)))
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        y += F.pad(x[..., ::1], (0, 0, 0, 0))
        x = F.relu(self.bn3(self.conv3(F.relu(y))))
        return self.head(x.mean((2, 3)))

    def conv_in(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x)


def depthwise() -> nn.Module:
    def block(i: int, o: int) -> list[nn.Module]:
        return [
            nn.Conv2d(i, i, 3, padding=1, groups=i, bias=False),
            nn.BatchNorm2d(i),
            nn.ReLU6(),
            nn.Conv2d(i, o, 1, bias=False),
            nn.BatchNorm2d(o),
            nn.ReLU6(),
        ]

    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU6(),
        *block(16, 24),
        *block(24, 32),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(32, CLASSES),
    )


NETWORKS = {"plain": plain, "residual": Residual, "depthwise": depthwise}


def make_data(n: int, seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Images whose class is a brightness pattern, in batches."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, CLASSES, (n,), generator=generator)
    images = torch.randn(n, 3, 8, 8, generator=generator)
    for k in range(CLASSES):
        images[labels == k, :, 2 * k : 2 * k + 2] += 1.5
    return list(zip(images.split(32), labels.split(32), strict=True))


def make_model(name: str) -> nn.Module:
    """A network with a few steps of training, so that its accuracy says something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = NETWORKS[name]()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for images, labels in make_data(512, 1) * 2:
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def count_macs(model: nn.Module) -> int:
    """Multiply-adds of one image, by watching what really runs."""
    total = 0

    def watch(module: nn.Module, _: object, output: torch.Tensor) -> None:
        nonlocal total
        positions = output[0].numel() // module.weight.shape[0]
        total += positions * module.weight.numel()

    hooks = [
        m.register_forward_hook(watch)
        for m in model.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    with torch.no_grad():
        model(EXAMPLE)
    for hook in hooks:
        hook.remove()
    return total


@pytest.mark.parametrize("name", NETWORKS)
class LearnerContract:
    """Inherit, and define :meth:`make`."""

    def make(self, model, example, calibration, validation, **options) -> Learner:
        raise NotImplementedError

    def prepared(self, name, **options):
        model = make_model(name)
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)
        return model, learner

    def random_plan(self, learner, seed=0):
        rng = np.random.default_rng(seed)
        values = [d.choices[rng.integers(len(d.choices))] for d in learner.decisions]
        return CompressionPlan.from_values(learner.decisions, values)

    def test_an_uncut_plan_has_the_original_accuracy(self, name):
        model, learner = self.prepared(name)
        assert learner.decisions
        right = total = 0
        with torch.no_grad():
            for images, labels in make_data(200, 3):
                right += int((model.eval()(images).argmax(1) == labels).sum())
                total += len(labels)
        assert learner.original_accuracy == pytest.approx(right / total, abs=0.02)
        full = CompressionPlan.full(learner.decisions)
        assert learner.evaluate(full) == learner.original_accuracy > 0.5

    def test_costs_promised_are_costs_delivered(self, name):
        model, learner = self.prepared(name)
        for seed in range(3):
            plan = self.random_plan(learner, seed)
            values = plan.values_for(learner.decisions)
            for cost, measured in (
                ("macs", count_macs(learner.compress(plan)) / count_macs(model)),
                (
                    "params",
                    sum(p.numel() for p in learner.compress(plan).parameters())
                    / sum(p.numel() for p in model.parameters()),
                ),
            ):
                formula = make_cost(cost, learner.graph, learner.decisions)
                full = formula(
                    CompressionPlan.full(learner.decisions).values_for(learner.decisions)
                )
                assert formula(values) / full == pytest.approx(measured, rel=1e-9)

    def test_equal_learners_and_equal_plans_give_equal_numbers(self, name):
        _, first = self.prepared(name, seed=5)
        _, second = self.prepared(name, seed=5)
        plans = [self.random_plan(first, seed) for seed in range(3)]
        forward = [first.evaluate(plan) for plan in plans]
        random.random()
        torch.rand(3)
        backward = [second.evaluate(plan) for plan in reversed(plans)]
        assert forward == backward[::-1]
        assert all(0.0 <= accuracy <= 1.0 for accuracy in forward)

    def test_compressing_twice_gives_the_same_network(self, name):
        _, learner = self.prepared(name)
        plan = self.random_plan(learner)
        first = learner.compress(plan)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.mul_(2)
        again, third = learner.compress(plan), learner.compress(plan)
        assert not any(m.training for m in again.modules())
        for key, value in again.state_dict().items():
            assert torch.equal(value, third.state_dict()[key])
            assert value.dtype in (torch.float32, torch.int64)

    def test_the_original_and_the_global_generators_are_left_alone(self, name):
        model = make_model(name).train()
        before = copy.deepcopy(model.state_dict())
        states = random.getstate(), torch.get_rng_state()
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(64, 3))
        plan = self.random_plan(learner)
        learner.evaluate(plan)
        learner.compress(plan)
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_later_changes_of_the_users_network_do_not_matter(self, name):
        model, learner = self.prepared(name)
        plan = self.random_plan(learner)
        accuracy = learner.evaluate(plan)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert learner.evaluate(plan) == accuracy

    def test_plans_for_something_else_are_refused(self, name):
        _, learner = self.prepared(name)
        full = dict(CompressionPlan.full(learner.decisions))
        key = learner.decisions[0].key
        for bad in (
            {k: v for k, v in full.items() if k != key},
            {**full, "elsewhere:keep_ratio": 0.5},
            {**full, key: 0.123},
            {**full, key: float("nan")},
            {},
        ):
            for method in (learner.evaluate, learner.compress):
                with pytest.raises(PlanMismatchError):
                    method(CompressionPlan(bad))

    def test_an_environment_can_be_made_of_it(self, name):
        _, learner = self.prepared(name)
        env = CompressionEnv(learner, Budget(macs=0.6))
        env.reset(seed=0)
        done = False
        while not done:
            _, _, done, _, info = env.step(env.action_space.sample())
        assert info["cost_ratio"]["macs"] <= 0.6
        network = learner.compress(CompressionPlan(info["plan"]))
        original = learner.compress(CompressionPlan.full(learner.decisions))
        assert count_macs(network) <= 0.6 * count_macs(original)

    def test_a_compressed_network_can_be_finetuned(self, name):
        _, learner = self.prepared(name)
        network = learner.compress(self.random_plan(learner))
        before = copy.deepcopy(network.state_dict())
        config = TrainingConfig(learning_rate=0.01, precision="fp32")
        result = learner.finetune(network, make_data(256, 1), epochs=1, config=config)
        assert len(result.history) == 1
        assert 0.0 <= result.best_accuracy <= 1.0
        assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())
