"""What every task must keep; a task's test class inherits this and gives a network and batches."""

from __future__ import annotations

import copy
import json
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.guards import check_order
from amc_compress.learners.tasks.inputs import count, joined, mapped, pieces, tensors_of
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError


def number(value: Tensor) -> float:
    """Return the value of a scalar that may have a gradient."""
    return float(value.detach())


class TaskContract:
    """Inherit, name the class ``Test...`` and define :meth:`make`, :meth:`network` and batches."""

    def make(self) -> Task:
        """Return the task, not bound to a network."""
        raise NotImplementedError

    def network(self, seed: int = 0) -> nn.Module:
        """Return a small network of this task, with random weights of this seed."""
        raise NotImplementedError

    def batch(self, samples: int, seed: int) -> Any:
        """Return a batch of this many samples, as a loader would."""
        raise NotImplementedError

    def bound(self, seed: int = 0) -> tuple[Task, nn.Module]:
        """Return the task of a network, and the network in ``eval`` mode."""
        network = self.network(seed).eval()
        return self.make().bind(network, "cpu"), network

    def parts(self, task: Task, samples: int, seed: int = 1) -> tuple[Any, Any]:
        """Return inputs and complete targets, checked."""
        inputs, targets = task.split(self.batch(samples, seed))
        task.check_targets(inputs, targets, "training ")
        return inputs, task.complete(inputs, targets)

    def outputs(self, task: Task, network: nn.Module, inputs: Any, targets: Any) -> Any:
        """Return what counts of what a network in ``eval`` mode answers."""
        with torch.no_grad():
            found = task.outputs(task.ask(network, inputs, targets))
        task.check(found, targets)
        return found

    def trained_outputs(self, task: Task, network: nn.Module, inputs: Any, targets: Any) -> Any:
        """Return outputs with a gradient, as a criterion of pruning asks for them."""
        with task.differentiable(network):
            found = task.outputs(task.ask(network, inputs, targets))
            task.check(found, targets, mode=" in training mode" if network.training else "")
        return found

    def test_samples_are_counted_alike_everywhere(self) -> None:
        task, network = self.bound()
        for samples in (1, 5):
            inputs, targets = self.parts(task, samples)
            assert count(inputs) == count(targets) == samples
            assert count(self.outputs(task, network, inputs, targets)) == samples

    def test_names_what_it_measures(self) -> None:
        task, network = self.bound()
        inputs, targets = self.parts(task, 6)
        outputs = self.outputs(task, network, inputs, targets)
        meter, reporting = task.meter(), task.meter(reported=True)
        meter.update(outputs, targets)
        reporting.update(outputs, targets)
        values, more = meter.compute(), reporting.compute()
        assert next(iter(values)) == next(iter(more)) == task.metric
        assert more[task.metric] == values[task.metric]
        assert set(task.offered) <= set(more)
        assert all(isinstance(value, float) for value in more.values())
        score = task.score(values)
        assert task.value(score) == values[task.metric]
        assert task.best_score is None or score <= task.best_score + 1e-4

    def test_the_division_into_batches_does_not_matter(self) -> None:
        task, network = self.bound()
        inputs, targets = self.parts(task, 7)
        outputs = self.outputs(task, network, inputs, targets)
        whole, divided = task.meter(reported=True), task.meter(reported=True)
        whole.update(outputs, targets)
        for size in pieces((outputs, targets), 3):
            divided.update(*size)
        assert divided.compute() == pytest.approx(whole.compute(), rel=1e-6)

    def test_each_sample_is_answered_for_itself(self) -> None:
        task, network = self.bound()
        inputs, targets = self.parts(task, 5)
        check_order(lambda x: self.outputs(task, network, x, targets), task, inputs)

    def test_the_loss_is_a_float32_number_with_a_gradient(self) -> None:
        task, network = self.bound()
        inputs, targets = self.parts(task, 4)
        modes = [module.training for module in network.modules()]
        other = self.network(seed=3).eval()
        outputs = self.trained_outputs(task, other, inputs, targets)
        assert [module.training for module in network.modules()] == modes
        loss = task.loss(outputs, targets)
        assert loss.shape == ()
        assert loss.dtype == torch.float32
        assert loss.isfinite()
        loss.backward()  # type: ignore[no-untyped-call]
        assert any(p.grad is not None and bool(p.grad.any()) for p in other.parameters())

    def test_the_loss_is_a_mean_and_has_a_sum(self) -> None:
        task, _ = self.bound()
        inputs, targets = self.parts(task, 4)
        outputs = self.trained_outputs(task, self.network(seed=3).eval(), inputs, targets)
        loss = number(task.loss(outputs, targets))
        assert number(task.summed_loss(outputs, targets)) == pytest.approx(4 * loss, rel=1e-5)
        if all(x.ndim and len(x) == 4 for x in tensors_of((outputs, targets))):
            twice = task.loss(joined([outputs, outputs]), joined([targets, targets]))
            assert number(twice) == pytest.approx(loss, rel=1e-5)

    def test_the_loss_of_half_precision_is_taken_in_float32(self) -> None:
        task, _ = self.bound()
        inputs, targets = self.parts(task, 4)
        outputs = self.trained_outputs(task, self.network(seed=3).eval(), inputs, targets)
        half = mapped(lambda x: x.bfloat16() if x.is_floating_point() else x, outputs)
        loss = task.loss(half, targets)
        assert loss.dtype == torch.float32
        rounded = mapped(lambda x: x.float() if x.is_floating_point() else x, half)
        assert number(loss) == pytest.approx(number(task.loss(rounded, targets)), rel=1e-5)

    def test_distillation_is_least_for_the_teacher_itself(self) -> None:
        task, teacher = self.bound()
        inputs, targets = self.parts(task, 4)
        theirs = self.outputs(task, teacher, inputs, targets)
        ours = self.outputs(task, self.network(seed=3).eval(), inputs, targets)
        if not task.distils:
            with pytest.raises(InputDataError):
                task.distillation(ours, theirs, 2.0)
            return
        same, other = (number(task.distillation(x, theirs, 2.0)) for x in (theirs, ours))
        assert same == pytest.approx(0.0, abs=1e-5)
        assert other > same

    def test_agreement_is_a_share_and_1_with_itself(self) -> None:
        task, network = self.bound()
        inputs, targets = self.parts(task, 6)
        outputs = self.outputs(task, network, inputs, targets)
        other = self.outputs(task, self.network(seed=3).eval(), inputs, targets)
        assert task.agreement(outputs, outputs) == pytest.approx(1.0, abs=1e-6)
        assert 0.0 <= task.agreement(other, outputs) < 1.0

    def test_too_few_outputs_are_rejected(self) -> None:
        task, network = self.bound()
        _, targets = self.parts(task, 6)
        few = self.outputs(task, network, *self.parts(task, 5))
        with pytest.raises(InputDataError):
            task.check(few, targets)

    def test_missing_targets_are_said_where_they_are_needed(self) -> None:
        task, _ = self.bound()
        inputs, _ = self.parts(task, 3)
        if task.needs_original:
            assert count(task.complete(inputs, None)) == 3
            with pytest.raises(InputDataError, match="bind"):
                self.make().complete(inputs, None)
        else:
            with pytest.raises(InputDataError, match="validation"):
                task.check_targets(inputs, None, "validation ")

    def test_the_network_is_left_alone(self) -> None:
        network = self.network().eval()
        before = copy.deepcopy(network.state_dict())
        task = self.make().bind(network, "cpu")
        inputs, targets = self.parts(task, 3)
        self.outputs(task, network, inputs, targets)
        assert not any(module.training for module in network.modules())
        for key, value in network.state_dict().items():
            assert torch.equal(value, before[key])

    def test_smoothing_is_taken_or_rejected(self) -> None:
        task, _ = self.bound()
        assert task.smoothed(0.0) is task
        if not task.smooths:
            with pytest.raises(InputDataError, match="label_smoothing"):
                task.smoothed(0.1)
            return
        inputs, targets = self.parts(task, 4)
        outputs = self.trained_outputs(task, self.network(seed=3).eval(), inputs, targets)
        smoothed = task.smoothed(0.1)
        assert task.label_smoothing == 0.0
        plain = number(task.loss(outputs, targets))
        assert number(smoothed.loss(outputs, targets)) != plain

    def test_it_pickles_and_says_what_it_is(self) -> None:
        task, network = self.bound()
        twin = pickle.loads(pickle.dumps(task))
        assert json.loads(json.dumps(task.identity())) == twin.identity()
        assert self.make().identity() == task.identity()
        inputs, targets = self.parts(twin, 3)
        outputs = self.outputs(twin, network, inputs, targets)
        meters = [one.meter() for one in (task, twin)]
        for meter in meters:
            meter.update(outputs, targets)
        assert meters[0].compute() == meters[1].compute()
