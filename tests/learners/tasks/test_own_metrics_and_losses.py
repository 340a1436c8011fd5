"""A metric, a loss and a task of the user's own, as objects and by their paths."""

from __future__ import annotations

import pickle

import pytest
import torch
from support import own_task
from torch import nn
from torchmetrics import MetricCollection, PearsonCorrCoef
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score
from torchmetrics.regression import MeanAbsoluteError, R2Score

from amc_compress.learners import Task, make_task
from amc_compress.learners.tasks.registry import TASKS
from amc_env.errors import InputDataError


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def measured(task, outputs, targets, *, reported=False):
    meter = task.meter(reported=reported)
    for size in (slice(0, 1), slice(1, 6), slice(6, 14)):
        meter.update(outputs[size], targets[size])
    return meter.compute()


def test_a_metric_of_torchmetrics_is_the_score():
    metric = PearsonCorrCoef()
    task = make_task("regression", metric=metric, higher_is_better=True)
    outputs, targets = numbers(14), numbers(14, seed=1)
    metric.update(outputs + 5, targets - 5)  # what it measured before does not matter
    found = measured(task, outputs, targets, reported=True)
    expected = torch.corrcoef(torch.stack([outputs, targets]))[0, 1]
    assert found["PearsonCorrCoef"] == pytest.approx(float(expected), abs=1e-5)
    assert found["mse"] == pytest.approx(float((outputs - targets).square().mean()))
    assert next(iter(found)) == task.metric == "PearsonCorrCoef"
    assert task.score(found) == found["PearsonCorrCoef"]
    assert measured(task, outputs, targets) == {task.metric: found[task.metric]}


@pytest.mark.parametrize(
    ("metric", "higher", "best"),
    [
        (MeanAbsoluteError(), False, 0.0),
        (MeanAbsoluteError, False, 0.0),
        ("torchmetrics:MeanAbsoluteError", False, 0.0),
        (R2Score(), True, 1.0),
        ("mae", False, 0.0),
        ("mse", False, 0.0),
    ],
)
def test_what_is_better_and_best_is_taken_from_the_metric(metric, higher, best):
    task = make_task("regression", metric=metric)
    assert task.higher_is_better is higher
    assert task.best_score == best
    values = measured(task, numbers(14), numbers(14, seed=1))
    assert task.score(values) == (1 if higher else -1) * values[task.metric]


def test_a_function_gets_all_samples_at_once():
    task = make_task("regression", metric="support.own_task:median", higher_is_better=False)
    outputs, targets = numbers(14), numbers(14, seed=1)
    found = measured(task, outputs.requires_grad_(), targets)
    assert found == {"median": pytest.approx(float((outputs - targets).detach().abs().median()))}
    assert task.score(found) < 0
    assert not task.metric_in_training


def test_a_collection_is_scored_by_its_first():
    both = MetricCollection({"f1": MulticlassF1Score(5), "top": MulticlassAccuracy(5)})
    task = make_task("classification", metric=both)
    logits, labels = numbers(14, 5), torch.arange(14) % 5
    found = measured(task, logits, labels)
    assert list(found) == ["f1", "top"]
    assert task.metric == "f1"
    theirs = both(logits, labels)
    assert found["f1"] == pytest.approx(float(theirs["f1"]), abs=1e-6)


def test_a_loss_is_a_function_a_module_its_class_or_a_path():
    outputs, targets = numbers(14).requires_grad_(), numbers(14, seed=1)
    expected = float((outputs - targets).detach().square().mean())
    for loss in (own_task.squared, nn.MSELoss(), nn.MSELoss, "support.own_task:squared"):
        task = make_task("regression", loss=loss)
        assert float(task.loss(outputs, targets).detach()) == pytest.approx(expected)
        assert float(task.summed_loss(outputs, targets).detach()) == pytest.approx(14 * expected)
        assert task.metric == "mse"


def test_a_loss_gets_float32_and_may_not_be_smoothed():
    task = make_task("classification", loss=nn.functional.cross_entropy)
    logits = numbers(14, 5).bfloat16().requires_grad_()
    assert task.loss(logits, torch.arange(14) % 5).dtype == torch.float32
    with pytest.raises(InputDataError, match="label_smoothing=0"):
        task.smoothed(0.1)
    assert make_task("classification", metric="top5").smoothed(0.1).label_smoothing == 0.1


def test_a_task_is_a_class_by_its_path_or_a_function_that_makes_one():
    task = make_task("support.own_task:Angles")
    assert isinstance(task, own_task.Angles)
    assert make_task("support.own_task:make").best_score is None
    assert make_task(task) is task
    other = make_task("support.own_task:Angles", metric="mae")
    assert isinstance(other, Task)
    assert other.metric == "mae"


def test_tasks_of_ones_own_say_what_they_are_and_pickle():
    task = make_task(
        "regression", metric=own_task.median, loss=own_task.squared, higher_is_better=False
    )
    assert task.identity() == {
        "name": "regression",
        "metric": f"{own_task.__name__}:median",
        "higher_is_better": False,
        "loss": f"{own_task.__name__}:squared",
    }
    library = make_task("regression", metric=MeanAbsoluteError(), loss=nn.L1Loss())
    assert library.identity()["metric"] == "torchmetrics.regression.mae:MeanAbsoluteError"
    assert pickle.loads(pickle.dumps(library)).identity() == library.identity()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "segmentations"}, "did you mean 'segmentation'"),
        ({"task": 3}, "Expected a task, its name or the path"),
        ({"task": "support.own_task:Unnamed"}, "to implement agreement, loss, meter"),
        ({"task": "support.own_task:NoMetric"}, "to name its metric"),
        ({"task": "support.own_task:nothing"}, "to be a class derived from"),
        ({"task": "support.own_task:Missing"}, "has no 'Missing'"),
        ({"metric": "accuracy"}, "Unknown metric 'accuracy'; .*available: mae, mse, rmse"),
        ({"metric": 3}, "Expected a metric as a torchmetrics.Metric, a function"),
        ({"metric": "torchmetrics:Accuracy"}, "the metric Accuracy to need no arguments"),
        ({"metric": own_task.median}, "whether a higher median is better"),
        ({"metric": "mae", "higher_is_better": True}, "lower is better: leave it out"),
        ({"higher_is_better": True}, "Expected higher_is_better with a metric"),
        ({"loss": 3}, "Expected a loss as a function"),
        ({"loss": "support.own_task:lost"}, "has no 'lost'"),
        ({"loss": "squared"}, "Expected the loss as package.module:name, got 'squared'"),
    ],
)
def test_what_is_no_task_metric_or_loss_is_said(options, message):
    with pytest.raises(InputDataError, match=message):
        make_task(**{"task": "regression", **options})


def test_every_ready_made_task_is_made_by_its_name():
    for name in TASKS:
        if name == "custom":
            continue  # has neither metric nor loss itself
        task = make_task(name)
        assert task.name == name
        assert task.metric not in task.offered
        for metric, measure in task.offered.items():
            offered = make_task(name, metric=metric)
            assert offered.metric == metric
            assert offered.higher_is_better == measure.higher_is_better


def loss_of(function):
    return make_task("regression", loss=function)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, targets: targets.square().mean(), "without a gradient to them"),
        (lambda outputs, targets: (outputs.detach() - targets).mean(), "without a gradient"),
        (lambda outputs, targets: nn.Parameter(torch.ones(())) * 2, "without a gradient"),
        (lambda outputs, targets: 0.5, "one number as a tensor, .* got 0.5: take the mean"),
        (lambda outputs, targets: outputs - targets, r"got \[4\] of torch.float32"),
        (lambda outputs, targets: outputs.sum().to("meta"), "on the outputs' device, cpu"),
    ],
)
def test_a_loss_that_cannot_be_trained_on_is_said(function, message):
    with pytest.raises(InputDataError, match=message):
        loss_of(function).loss(numbers(4).requires_grad_(), numbers(4, seed=1))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda outputs, targets: outputs, r"a tensor of shape \[4\] on cpu"),
        (lambda outputs, targets: torch.ones((), device="meta"), r"shape \[\] on meta"),
        (lambda outputs, targets: {"mae": 1.0}, "got dict"),
        (lambda outputs, targets: None, "got NoneType"),
        (lambda outputs, targets: 1j, "got complex"),
    ],
)
def test_a_metric_that_is_no_number_is_said(function, message):
    task = make_task("regression", metric=function, higher_is_better=True)
    meter = task.meter()
    meter.update(numbers(4), numbers(4))
    with pytest.raises(InputDataError, match=f"to return one number.*{message}"):
        meter.compute()


def test_a_metric_may_return_a_tensor_with_a_gradient_or_of_one_number():
    for function in (lambda a, b: (a - b).mean(), lambda a, b: (a - b).mean()[None]):
        task = make_task("regression", metric=function, higher_is_better=True)
        meter = task.meter()
        meter.update(numbers(4).requires_grad_(), numbers(4))
        assert meter.compute() == {"<lambda>": 0.0}


def test_a_share_in_percent_is_said():
    class Share(MulticlassAccuracy):
        def compute(self):
            return 100 * super().compute()

    task = make_task("classification", metric=Share(5))
    values = measured(task, torch.eye(14)[:, :5], torch.arange(14) % 5)
    with pytest.raises(InputDataError, match=r"Share to be 1 at best, got .*not percent"):
        task.score(values)
    free = make_task("classification", metric=own_task.percent)  # it says no range
    assert 1 < free.score(measured(free, torch.eye(14)[:, :5], torch.arange(14) % 5)) <= 100


def test_batches_of_several_sizes_need_a_metric_that_takes_them():
    task = make_task("segmentation", metric=lambda a, b: 1.0, higher_is_better=True)
    meter = task.meter()
    meter.update(numbers(2, 3, 4, 4), torch.zeros(2, 4, 4))
    with pytest.raises(InputDataError, match=r"make the metric a torchmetrics\.Metric"):
        meter.update(numbers(2, 3, 5, 5), torch.zeros(2, 5, 5))


def test_a_task_without_metric_and_loss_asks_for_them():
    for given in ({}, {"metric": MeanAbsoluteError()}, {"loss": nn.MSELoss()}):
        with pytest.raises(InputDataError, match="Expected a metric and a loss with the task 'cus"):
            make_task("custom", **given)


def test_a_metric_of_several_numbers_says_so():
    import torchmetrics

    each = torchmetrics.Accuracy(task="multiclass", num_classes=3, average=None)
    meter = make_task("classification", metric=torchmetrics.wrappers.ClasswiseWrapper(each)).meter()
    meter.update(torch.eye(3), torch.arange(3))
    with pytest.raises(InputDataError, match=r"one number, got 3: multiclassaccuracy_0, multicl"):
        meter.compute()
