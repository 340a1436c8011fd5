"""What every learner must keep; a learner's test class inherits this and builds the learner."""

from __future__ import annotations

import copy
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from amc_compress.learners.base import Learner
from amc_compress.learners.testing.networks import (
    CLASSES,
    EXAMPLE,
    NETWORKS,
    Interrupted,
    accuracy_of,
    count_macs,
    make_data,
    make_model,
)
from amc_compress.learners.training.config import TrainingConfig
from amc_env import Budget, CompressionEnv, CompressionPlan
from amc_env.errors import PlanMismatchError


def full_evaluation(learner: Learner) -> Callable[[CompressionPlan], float]:
    """Return what evaluates a plan on all validation data, which a learner may leave out."""
    method: Callable[[CompressionPlan], float] = getattr(learner, "evaluate_full", learner.evaluate)
    return method


@pytest.mark.parametrize("name", NETWORKS)
class LearnerContract:
    """Inherit, name the class ``Test...`` and define :meth:`make`.

    The attributes say what differs between learners.
    """

    budget = Budget(macs=0.6)
    """What a search may be asked for."""

    uncut_loss = 0.0
    """How far the plan that changes least may be from the original accuracy; 0 means equal."""

    proxy_is_compress = True
    """Whether candidates are evaluated as :meth:`compress` builds them, without SGD steps."""

    unknown_key = "elsewhere:keep_ratio"

    def make(
        self, model: nn.Module, example: Tensor, calibration: Any, validation: Any, **options: Any
    ) -> Learner:
        """Return a prepared learner.

        Args:
            model: The network to compress; the learner must leave it as it is.
            example: An input of it.
            calibration: Batches of images and labels that the learner may look at.
            validation: Batches that candidates are evaluated on.
            **options: ``seed``, and ``precision``: ``"fp32"`` computes in float32.
        """
        raise NotImplementedError

    def measured(
        self, learner: Learner, network: nn.Module, original: nn.Module
    ) -> dict[str, float]:
        """Return cost ratios of a compressed network, found by watching and counting."""
        return {
            "macs": count_macs(network) / count_macs(original),
            "params": sum(p.numel() for p in network.parameters())
            / sum(p.numel() for p in original.parameters()),
        }

    _prepared: ClassVar[dict[tuple[type, str, str], bytes]] = {}

    def prepared(self, name: str, **options: Any) -> tuple[nn.Module, Learner]:
        """Return a trained network and its learner: copies of what was prepared once.

        They are copied together, so that what they share stays shared.
        """
        key = (type(self), name, repr(sorted(options.items())))
        if key not in self._prepared:
            self._prepared[key] = pickle.dumps(self.fresh(name, **options))
        network, learner = pickle.loads(self._prepared[key])
        return network, learner

    def fresh(self, name: str, **options: Any) -> tuple[nn.Module, Learner]:
        """Return a trained network and its learner, prepared anew."""
        model = make_model(name)
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(200, 3), **options)
        return model, learner

    def random_plan(self, learner: Learner, seed: int = 0) -> CompressionPlan:
        """Return a plan of values drawn evenly, within no budget."""
        rng = np.random.default_rng(seed)
        values = [d.choices[rng.integers(len(d.choices))] for d in learner.decisions]
        return CompressionPlan.from_values(learner.decisions, values)

    def test_an_uncut_plan_has_the_original_accuracy(self, name: str) -> None:
        model, learner = self.prepared(name)
        assert learner.decisions
        expected = accuracy_of(model, make_data(200, 3))
        assert learner.original_accuracy == pytest.approx(expected, abs=0.02)
        assert learner.original_accuracy > 0.5
        full = CompressionPlan.full(learner.decisions)
        assert abs(learner.evaluate(full) - learner.original_accuracy) <= self.uncut_loss

    def test_costs_promised_are_costs_delivered(self, name: str) -> None:
        model, learner = self.prepared(name)
        env = CompressionEnv(learner, self.budget)
        for seed in range(3):
            plan = self.random_plan(learner, seed)
            promised = env.cost_ratio(plan)
            for cost, ratio in self.measured(learner, learner.compress(plan), model).items():
                assert promised[cost] == pytest.approx(ratio, rel=1e-9), cost

    def test_equal_learners_and_equal_plans_give_equal_numbers(self, name: str) -> None:
        _, first = self.prepared(name, seed=5)
        _, second = self.fresh(name, seed=5)
        plans = [self.random_plan(first, seed) for seed in range(3)]
        forward = [first.evaluate(plan) for plan in plans]
        random.random()
        torch.rand(3)
        backward = [second.evaluate(plan) for plan in reversed(plans)]
        assert forward == backward[::-1]
        assert all(0.0 <= accuracy <= 1.0 for accuracy in forward)

    def test_what_was_evaluated_before_does_not_matter(self, name: str) -> None:
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

    def test_compressing_twice_gives_the_same_network(self, name: str) -> None:
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

    def test_a_compressed_network_has_finite_outputs_for_every_class(self, name: str) -> None:
        _, learner = self.prepared(name)
        images = torch.cat([x for x, _ in make_data(64, 4)])
        smallest = CompressionPlan({d.key: d.choices[0] for d in learner.decisions})
        for plan in (smallest, self.random_plan(learner)):
            with torch.no_grad():
                outputs = learner.compress(plan)(images)
            assert outputs.shape == (64, CLASSES)
            assert outputs.dtype == torch.float32
            assert outputs.isfinite().all()

    def test_evaluation_agrees_with_the_compressed_network(self, name: str) -> None:
        if not self.proxy_is_compress:
            pytest.skip("candidates take SGD steps that the compressed network does not")
        _, learner = self.prepared(name, precision="fp32")
        for seed in range(3):
            plan = self.random_plan(learner, seed)
            found = accuracy_of(learner.compress(plan), make_data(200, 3))
            assert learner.evaluate(plan) == pytest.approx(found, abs=0.006)
            assert full_evaluation(learner)(plan) == pytest.approx(found, abs=0.006)

    def test_the_original_and_the_global_generators_are_left_alone(self, name: str) -> None:
        model = make_model(name).train()
        before = copy.deepcopy(model.state_dict())
        states = random.getstate(), torch.get_rng_state()
        numpy_state = np.random.get_state(legacy=False)["state"]["key"].tolist()  # noqa: NPY002
        threads = torch.get_num_threads()
        learner = self.make(model, EXAMPLE, make_data(96, 2), make_data(64, 3))
        plan = self.random_plan(learner)
        learner.evaluate(plan)
        learner.compress(plan)
        assert random.getstate() == states[0]
        assert torch.equal(torch.get_rng_state(), states[1])
        assert np.random.get_state(legacy=False)["state"]["key"].tolist() == numpy_state  # noqa: NPY002
        assert torch.get_num_threads() == threads
        assert model.training
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        for key, value in model.state_dict().items():
            assert torch.equal(value, before[key])

    def test_the_seed_decides_the_order_of_a_loader_that_shuffles(self, name: str) -> None:
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

    def test_later_changes_of_the_users_network_do_not_matter(self, name: str) -> None:
        model, learner = self.prepared(name)
        plan = self.random_plan(learner)
        accuracy = learner.evaluate(plan)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.zero_()
        assert learner.evaluate(plan) == accuracy

    def test_plans_for_something_else_are_rejected(self, name: str) -> None:
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
            for method in (learner.evaluate, full_evaluation(learner), learner.compress):
                with pytest.raises(PlanMismatchError):
                    method(CompressionPlan(bad))

    def test_an_environment_can_be_made_of_it(self, name: str) -> None:
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

    def test_it_pickles_and_the_copy_says_the_same(self, name: str) -> None:
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

    def test_a_compressed_network_can_be_finetuned(self, name: str) -> None:
        _, learner = self.prepared(name)
        network = learner.compress(self.random_plan(learner))
        before = copy.deepcopy(network.state_dict())
        config = TrainingConfig(learning_rate=0.01, precision="fp32")
        result = learner.finetune(network, make_data(256, 1), epochs=1, config=config)
        assert len(result.history) == 1
        assert 0.0 <= result.best_score <= 1.0
        is_changed = any(not torch.equal(v, before[k]) for k, v in network.state_dict().items())
        assert is_changed == (result.best_epoch >= 0)  # else the start is handed back

    def test_interrupted_finetuning_ends_with_the_same_bits(
        self, name: str, tmp_path: Path
    ) -> None:
        _, learner = self.prepared(name)
        plan = self.random_plan(learner)
        # Killed inside an epoch, and resumed there.
        config = TrainingConfig(epochs=2, learning_rate=0.01, precision="fp32", snapshot_steps=1)
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
