"""What every learner must keep; a learner's test class inherits this and builds the learner."""

from __future__ import annotations

import copy
import pickle
import random
from typing import ClassVar

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from contracts.precision_contract import PrecisionContract
from support.once import copies
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from amc_compress.learners.base import Learner
from amc_compress.learners.training.config import TrainingConfig
from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.errors import PlanMismatchError

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


@copies
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


def accuracy_of(model: nn.Module, data: list[tuple[torch.Tensor, torch.Tensor]]) -> float:
    """Share of images that the network itself gets right, one plain pass."""
    right = total = 0
    with torch.no_grad():
        for images, labels in data:
            right += int((model.eval()(images).argmax(1) == labels).sum())
            total += len(labels)
    return right / total


class Interrupted:
    """Batches that end in an interruption in the middle of the given epoch."""

    def __init__(self, batches: list, stop_at: int | None) -> None:
        self.batches, self.stop_at, self.epoch = batches, stop_at, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self):
        for index, batch in enumerate(self.batches):
            if self.epoch == self.stop_at and index == 1:
                raise KeyboardInterrupt
            yield batch


@pytest.mark.parametrize("name", NETWORKS)
class LearnerContract(PrecisionContract):
    """Inherit, and define :meth:`make`; the attributes say what differs between learners."""

    budget = Budget(macs=0.6)
    """What a search may be asked for."""

    uncut_loss = 0.0
    """How far the plan that changes least may be from the original accuracy; 0 means equal."""

    proxy_is_compress = True
    """Whether candidates are evaluated as :meth:`compress` builds them, without SGD steps."""

    unknown_key = "elsewhere:keep_ratio"

    def make(self, model, example, calibration, validation, **options) -> Learner: ...

    def measured(self, learner, network, original) -> dict[str, float]:
        """Cost ratios of a delivered network, found by watching and counting."""
        return {
            "macs": count_macs(network) / count_macs(original),
            "params": sum(p.numel() for p in network.parameters())
            / sum(p.numel() for p in original.parameters()),
        }

    _prepared: ClassVar[dict[tuple[type, str, str], bytes]] = {}

    def prepared(self, name, **options):
        """A network and its learner, copies of what was prepared once for these options.

        They are copied together, so that what they share stays shared.
        """
        key = (type(self), name, repr(sorted(options.items())))
        if key not in self._prepared:
            self._prepared[key] = pickle.dumps(self.fresh(name, **options))
        return pickle.loads(self._prepared[key])

    def fresh(self, name, **options):
        """A network and its learner, prepared anew."""
        model = make_model(name)
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)
        return model, learner

    def with_much_data(self, name, precision):
        data = make_data(96, 2), make_data(2000, 3)  # more images: an accuracy has finer steps
        return self.make(make_model(name), EXAMPLE, *data, precision=precision)

    def random_plan(self, learner, seed=0):
        rng = np.random.default_rng(seed)
        values = [d.choices[rng.integers(len(d.choices))] for d in learner.decisions]
        return CompressionPlan.from_values(learner.decisions, values)

    def test_an_uncut_plan_has_the_original_accuracy(self, name):
        model, learner = self.prepared(name)
        assert learner.decisions
        expected = accuracy_of(model, make_data(200, 3))
        assert learner.original_accuracy == pytest.approx(expected, abs=0.02)
        assert learner.original_accuracy > 0.5
        full = CompressionPlan.full(learner.decisions)
        assert abs(learner.evaluate(full) - learner.original_accuracy) <= self.uncut_loss

    def test_costs_promised_are_costs_delivered(self, name):
        model, learner = self.prepared(name)
        env = CompressionEnv(learner, self.budget)
        for seed in range(3):
            plan = self.random_plan(learner, seed)
            promised = env.cost_ratio(plan)
            for cost, ratio in self.measured(learner, learner.compress(plan), model).items():
                assert promised[cost] == pytest.approx(ratio, rel=1e-9), cost

    def test_equal_learners_and_equal_plans_give_equal_numbers(self, name):
        _, first = self.prepared(name, seed=5)
        _, second = self.fresh(name, seed=5)
        plans = [self.random_plan(first, seed) for seed in range(3)]
        forward = [first.evaluate(plan) for plan in plans]
        random.random()
        torch.rand(3)
        backward = [second.evaluate(plan) for plan in reversed(plans)]
        assert forward == backward[::-1]
        assert all(0.0 <= accuracy <= 1.0 for accuracy in forward)

    def test_what_was_evaluated_before_does_not_matter(self, name):
        """Nothing that one candidate leaves behind reaches the next: outputs, not accuracies."""
        _, learner = self.prepared(name)
        _, other = self.prepared(name)
        plan = self.random_plan(learner)
        images = make_data(32, 4)[0][0]
        for seed in (1, 2):
            learner.evaluate(self.random_plan(learner, seed))
            learner.compress(self.random_plan(learner, seed))
        with torch.no_grad():
            assert torch.equal(learner.compress(plan)(images), other.compress(plan)(images))

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
            assert not value.is_floating_point() or value.dtype == torch.float32

    def test_a_compressed_network_has_finite_outputs_for_every_class(self, name):
        _, learner = self.prepared(name)
        images = torch.cat([x for x, _ in make_data(64, 4)])
        smallest = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
        for plan in (smallest, self.random_plan(learner)):
            with torch.no_grad():
                outputs = learner.compress(plan)(images)
            assert outputs.shape == (64, CLASSES)
            assert outputs.dtype == torch.float32
            assert outputs.isfinite().all()

    def test_evaluation_agrees_with_the_compressed_network(self, name):
        if not self.proxy_is_compress:
            pytest.skip("candidates take SGD steps that the compressed network does not")
        _, learner = self.prepared(name, precision="fp32")
        for seed in range(3):
            plan = self.random_plan(learner, seed)
            found = accuracy_of(learner.compress(plan), make_data(200, 3))
            assert learner.evaluate(plan) == pytest.approx(found, abs=0.006)
            assert learner.evaluate_full(plan) == pytest.approx(found, abs=0.006)

    def test_the_original_and_the_global_generators_are_left_alone(self, name):
        model = make_model(name).train()
        before = copy.deepcopy(model.state_dict())
        states = random.getstate(), torch.get_rng_state()
        numpy_state = np.random.get_state()[1].tolist()  # noqa: NPY002
        threads = torch.get_num_threads()
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(64, 3))
        plan = self.random_plan(learner)
        learner.evaluate(plan)
        learner.compress(plan)
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert np.random.get_state()[1].tolist() == numpy_state  # noqa: NPY002
        assert torch.get_num_threads() == threads
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_the_seed_decides_the_order_of_a_loader_that_shuffles(self, name):
        model = make_model(name)
        data = [torch.cat(part) for part in zip(*make_data(96, 2), strict=True)]
        loader = DataLoader(TensorDataset(*data), 32, shuffle=True)
        learners = []
        for start in (1, 2):
            with torch.random.fork_rng():
                torch.manual_seed(start)
                state = torch.get_rng_state()
                learners.append(self.make(model, EXAMPLE, loader, loader, seed=5))
                assert torch.equal(torch.get_rng_state(), state)
        first, second = learners
        plan = self.random_plan(first)
        assert first.evaluate(plan) == second.evaluate(plan)
        images = make_data(32, 4)[0][0]
        with torch.no_grad():
            assert torch.equal(first.compress(plan)(images), second.compress(plan)(images))

    def test_later_changes_of_the_users_network_do_not_matter(self, name):
        model, learner = self.prepared(name)
        plan = self.random_plan(learner)
        accuracy = learner.evaluate(plan)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert learner.evaluate(plan) == accuracy

    def test_plans_for_something_else_are_rejected(self, name):
        _, learner = self.prepared(name)
        full = dict(CompressionPlan.full(learner.decisions))
        key = learner.decisions[0].key
        for bad in (
            {k: v for k, v in full.items() if k != key},
            {**full, self.unknown_key: full[key]},
            {**full, key: 0.123},
            {**full, key: float("nan")},
            {},
        ):
            for method in (learner.evaluate, learner.evaluate_full, learner.compress):
                with pytest.raises(PlanMismatchError):
                    method(CompressionPlan(bad))

    def test_an_environment_can_be_made_of_it(self, name):
        model, learner = self.prepared(name)
        env = CompressionEnv(learner, self.budget)
        env.action_space.seed(0)
        for _ in range(3):
            env.reset(seed=0)
            done = False
            while not done:
                observation, _, done, _, info = env.step(env.action_space.sample())
                assert env.observation_space.contains(observation)
            plan = CompressionPlan(info["plan"])
            delivered = self.measured(learner, learner.compress(plan), model)
            for cost, (lower, upper) in self.budget.bounds.items():
                assert lower <= info["cost_ratio"][cost] <= upper
                assert delivered[cost] <= upper + 1e-9

    def test_it_pickles_and_the_copy_says_the_same(self, name):
        _, learner = self.prepared(name)
        plan = self.random_plan(learner)
        expected = learner.evaluate(plan)
        twin = pickle.loads(pickle.dumps(learner))
        assert [d.key for d in twin.decisions] == [d.key for d in learner.decisions]
        assert twin.evaluate(plan) == expected
        images = make_data(32, 4)[0][0]
        network = learner.compress(plan)
        with torch.no_grad():
            assert torch.equal(pickle.loads(pickle.dumps(network))(images), network(images))
            assert torch.equal(copy.deepcopy(network)(images), network(images))

    def test_a_compressed_network_can_be_finetuned(self, name):
        _, learner = self.prepared(name)
        network = learner.compress(self.random_plan(learner))
        before = copy.deepcopy(network.state_dict())
        config = TrainingConfig(learning_rate=0.01, precision="fp32")
        result = learner.finetune(network, make_data(256, 1), epochs=1, config=config)
        assert len(result.history) == 1
        assert 0.0 <= result.best_accuracy <= 1.0
        assert any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())

    def test_interrupted_finetuning_ends_with_the_same_bits(self, name, tmp_path):
        _, learner = self.prepared(name)
        plan = self.random_plan(learner)
        config = TrainingConfig(epochs=2, learning_rate=0.01, precision="fp32")
        batches = make_data(128, 1)
        straight, resumed = learner.compress(plan), learner.compress(plan)
        learner.finetune(straight, Interrupted(batches, None), config=config)
        with pytest.raises(KeyboardInterrupt):
            learner.finetune(
                learner.compress(plan),
                Interrupted(batches, 1),
                config=config,
                checkpoint_dir=tmp_path,
            )
        learner.finetune(
            resumed,
            Interrupted(batches, None),
            config=config,
            checkpoint_dir=tmp_path,
            resume=True,
        )
        for key, value in straight.state_dict().items():
            assert torch.equal(resumed.state_dict()[key], value), key
