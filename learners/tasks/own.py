"""Tasks with a metric or a loss of the user's own."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.guards import as_number, check_gradient, checked_loss
from amc_compress.learners.tasks.inputs import (
    Inputs,
    device_of,
    form,
    joined,
    mapped,
    moved,
    tensors_of,
)
from amc_compress.learners.tasks.task import Measure, Meter, Task
from amc_env.errors import InputDataError
from amc_env.validation.sentences import some

if TYPE_CHECKING:
    from torchmetrics import Metric

Self = TypeVar("Self", bound="OwnTask")

Function = Callable[[Any, Any], Any]
"""Of outputs and targets."""


class OwnMetric(Protocol):
    """A metric in place of a task's own.

    Attributes:
        name: How it is called in results.
        measure: What it says.
    """

    name: str
    measure: Measure

    def meter(self, task: Task, *, reported: bool) -> Meter:
        """Returns a fresh meter, this metric first."""

    def identity(self) -> str:
        """Returns what tells it from others."""


class OfferedMetric:
    """One of those that the task reports.

    Args:
        name: Its name there.
        measure: What it says.
    """

    def __init__(self, name: str, measure: Measure) -> None:
        self.name = name
        self.measure = measure

    def meter(self, task: Task, *, reported: bool) -> Meter:
        """Returns the task's meter, this metric first."""
        return _First(self.name, task.meter(reported=True), None if reported else {self.name})

    def identity(self) -> str:
        """Returns the name."""
        return self.name


class LibraryMetric:
    """A ``torchmetrics.Metric``, or a collection of them whose first one counts.

    Args:
        metric: As the user made it; copies of it measure.
        measure: What it says.
    """

    def __init__(self, metric: Metric, measure: Measure) -> None:
        # A collection is a dictionary of modules.
        self.name = (
            next(iter(metric))
            if isinstance(metric, Mapping | nn.ModuleDict)
            else type(metric).__name__
        )
        self.metric = metric
        self.measure = measure

    def meter(self, task: Task, *, reported: bool) -> Meter:
        """Returns a meter of a fresh copy."""
        return _Both(_LibraryMeter(self), task.meter(reported=True) if reported else None)

    def identity(self) -> str:
        """Returns the path of the class."""
        return path_of(type(self.metric))


class FunctionMetric:
    """A function of the outputs and targets of all samples.

    Args:
        function: The function.
        measure: What it says.
    """

    def __init__(self, function: Function, measure: Measure) -> None:
        self.name = getattr(function, "__name__", type(function).__name__)
        self.function = function
        self.measure = measure

    def meter(self, task: Task, *, reported: bool) -> Meter:
        """Returns a meter that gathers all outputs and targets."""
        return _Both(_FunctionMeter(self), task.meter(reported=True) if reported else None)

    def identity(self) -> str:
        """Returns the path of the function."""
        return path_of(self.function)


class _LibraryMeter:
    def __init__(self, own: LibraryMetric) -> None:
        self._name = own.name
        self._metric = copy.deepcopy(own.metric)
        # Of a collection the first counts, and the library's metrics of boxes begin with theirs.
        self._is_ordered = isinstance(own.metric, Mapping | nn.ModuleDict) or type(
            own.metric
        ).__module__.startswith("torchmetrics.detection")
        self._metric.reset()

    def update(self, outputs: Any, targets: Any) -> None:
        self._metric.to(device_of(outputs))
        with torch.no_grad():
            self._metric.update(mapped(Tensor.detach, outputs), targets)

    def compute(self) -> dict[str, float]:
        found = self._metric.compute()
        who = f"the metric {self._name!r}"
        if not isinstance(found, Mapping):
            return {self._name: as_number(found, who)}
        values = list(found.values())
        if not values:
            raise InputDataError(f"Expected {who} to return one number, got an empty dictionary.")
        if len(values) > 1 and not self._is_ordered:
            raise InputDataError(
                f"Expected {who} to return one number, got {len(values)}: "
                f"{some(map(str, found))}; pass a function that chooses one, or a "
                f"MetricCollection, of which the first counts."
            )
        rest = {str(key): _number_or_none(value) for key, value in list(found.items())[1:]}
        numbers = {key: value for key, value in rest.items() if value is not None}
        return {self._name: as_number(values[0], who)} | numbers


def _number_or_none(value: Any) -> float | None:
    """Returns a further value of a metric; lists, as one per class, are left out."""
    is_one = not isinstance(value, Tensor) or value.numel() == 1
    value = value.detach() if isinstance(value, Tensor) else value
    return float(value) if is_one and isinstance(value, Tensor | int | float) else None


class _FunctionMeter:
    def __init__(self, own: FunctionMetric) -> None:
        self._name = own.name
        self._function = own.function
        self._batches: list[tuple[Any, Any]] = []

    def update(self, outputs: Any, targets: Any) -> None:
        # Off the GPU: all of them are kept.
        kept = (moved(mapped(Tensor.detach, outputs), "cpu"), moved(targets, "cpu"))
        if self._batches and form(kept) != form(self._batches[0]):
            raise InputDataError(
                f"Expected outputs and targets of the same shape in each batch, since the function "
                f"{self._name!r} gets all samples at once, got different ones: make the metric a "
                f"torchmetrics.Metric, which takes batch by batch."
            )
        self._batches.append(kept)

    def compute(self) -> dict[str, float]:
        if not self._batches:
            raise InputDataError(
                f"Expected at least one sample to measure {self._name!r} on, got none."
            )
        outputs, targets = joined(self._batches)
        who = f"the metric {self._name!r}"
        return {self._name: as_number(self._function(outputs, targets), who)}


class _First:
    """A meter whose metric of a name comes first."""

    def __init__(self, name: str, meter: Meter, kept: set[str] | None) -> None:
        self._name = name
        self._meter = meter
        self._kept = kept

    def update(self, outputs: Any, targets: Any) -> None:
        self._meter.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        values = self._meter.compute()
        if self._name not in values:
            raise InputDataError(
                f"Expected the metric {self._name!r} among those measured, got "
                f"{', '.join(values)}: it is not measured for these outputs."
            )
        rest = {k: v for k, v in values.items() if self._kept is None or k in self._kept}
        return {self._name: values[self._name]} | rest


class _Both:
    """A meter, and another whose metrics are merely reported."""

    def __init__(self, meter: Meter, reported: Meter | None) -> None:
        self._meter = meter
        self._reported = reported

    def update(self, outputs: Any, targets: Any) -> None:
        self._meter.update(outputs, targets)
        if self._reported is not None:
            self._reported.update(outputs, targets)

    def compute(self) -> dict[str, float]:
        values = self._meter.compute()
        more = {} if self._reported is None else self._reported.compute()
        return values | {key: value for key, value in more.items() if key not in values}


class OwnTask(Task):
    """A task with another metric, another loss, or both; all else is as there.

    Args:
        base: The task.
        metric: In place of its metric.
        loss: In place of its loss: a function of outputs and targets.
    """

    def __init__(
        self, base: Task, *, metric: OwnMetric | None = None, loss: Function | None = None
    ) -> None:
        self.base = base
        self.own_metric = metric
        self.own_loss = loss
        self.name = base.name
        self.metric = base.metric if metric is None else metric.name
        self.higher_is_better = base.higher_is_better
        self.best_score = base.best_score
        if metric is not None:
            best = metric.measure.best
            self.higher_is_better = metric.measure.higher_is_better
            self.best_score = best if best is None or self.higher_is_better else 0.0 - best
        self.metric_in_training = base.metric_in_training and not isinstance(metric, FunctionMetric)
        self.distils = base.distils
        self.needs_original = base.needs_original
        self.smooths = base.smooths and loss is None
        self.tolerates_rounding = base.tolerates_rounding and (
            metric is None or isinstance(metric, OfferedMetric)
        )
        self.keeps_types = base.keeps_types
        self.label_smoothing = base.label_smoothing
        self._loss_depends = False  # on the outputs; checked with the first batch

    def split(self, batch: Any) -> tuple[Inputs, Any]:
        """As the task's."""
        return self.base.split(batch)

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """As the task's."""
        self.base.check_targets(inputs, targets, name)

    def ask(self, network: nn.Module, inputs: Inputs, targets: Any = None) -> Any:
        """As the task's."""
        return self.base.ask(network, inputs, targets)

    def outputs(self, raw: Any) -> Any:
        """As the task's."""
        return self.base.outputs(raw)

    def loss(self, outputs: Any, targets: Any) -> Tensor:
        """The own loss of float32 outputs, or the task's.

        Raises:
            InputDataError: If it is no single number, or does not depend on the outputs.
        """
        if self.own_loss is None:
            return self.base.loss(outputs, targets)
        who = f"the loss {_name_of(self.own_loss)!r}"
        raised = mapped(lambda x: x.float() if x.is_floating_point() else x, outputs)
        loss = checked_loss(self.own_loss(raised, targets), outputs, who)
        if not self._loss_depends:
            check_gradient(loss, outputs, who)
            self._loss_depends = any(x.requires_grad for x in tensors_of(outputs))
        return loss

    def loss_terms(self, inputs: Inputs, targets: Any) -> float:
        """The samples of the own loss, the terms of the task's."""
        if self.own_loss is None:
            return self.base.loss_terms(inputs, targets)
        return super().loss_terms(inputs, targets)

    def summed_loss(self, outputs: Any, targets: Any) -> Tensor:
        """The sum of the losses of the samples."""
        if self.own_loss is None:
            return self.base.summed_loss(outputs, targets)
        return super().summed_loss(outputs, targets)

    def distillation(self, student: Any, teacher: Any, temperature: float) -> Tensor:
        """As the task's."""
        return self.base.distillation(student, teacher, temperature)

    def meter(self, *, reported: bool = False) -> Meter:
        """Returns a meter, the own metric first; those of the task are reported."""
        if self.own_metric is None:
            return self.base.meter(reported=reported)
        return self.own_metric.meter(self.base, reported=reported)

    def check(self, outputs: Any, targets: Any, who: str = "network", mode: str = "") -> None:
        """As the task's."""
        self.base.check(outputs, targets, who, mode)

    def check_range(self, outputs: Any, targets: Any, name: str) -> None:
        """As the task's."""
        self.base.check_range(outputs, targets, name)

    def agreement(self, outputs: Any, reference: Any) -> float:
        """As the task's."""
        return self.base.agreement(outputs, reference)

    @contextmanager
    def differentiable(self, network: nn.Module) -> Iterator[None]:
        """As the task's."""
        with self.base.differentiable(network):
            yield

    def bind(self: Self, network: nn.Module, device: str | torch.device) -> Self:
        """Returns the task of this original network."""
        found = copy.copy(self)
        found.base = self.base.bind(network, device)
        return found

    def complete(self, inputs: Inputs, targets: Any) -> Any:
        """As the task's."""
        return self.base.complete(inputs, targets)

    def drawn(self, targets: Any) -> Any:
        """As the task's, for its own loss alone."""
        return targets if self.own_loss is not None else self.base.drawn(targets)

    def smoothed(self: Self, share: float) -> Self:
        """Returns the task with label smoothing, which an own loss does not know."""
        found = super().smoothed(share)
        if found is not self:
            found.base = self.base.smoothed(share)
        return found

    def identity(self) -> dict[str, Any]:
        """Returns what tells this task from others, as JSON values."""
        found = self.base.identity()
        if self.own_metric is not None:
            found["metric"] = self.own_metric.identity()
            found["higher_is_better"] = self.higher_is_better
        if self.own_loss is not None:
            found["loss"] = path_of(self.own_loss)
        return found


def path_of(value: Any) -> str:
    """Returns the path of a class or function, of other objects that of their class."""
    named = value if inspect.isclass(value) or inspect.isroutine(value) else type(value)
    return f"{named.__module__}:{named.__qualname__}"


def _name_of(value: Any) -> str:
    return path_of(value).partition(":")[2]
