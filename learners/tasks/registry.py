"""Tasks by name or by the path of a class, with another metric or loss where that is wanted.

A user's own code is named as ``package.module:name``, as everywhere.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

from amc_compress.learners.tasks.own import (
    Function,
    FunctionMetric,
    LibraryMetric,
    OfferedMetric,
    OwnMetric,
    OwnTask,
)
from amc_compress.learners.tasks.task import Measure, Task
from amc_env.errors import InputDataError
from amc_env.validation.checks import unknown
from amc_env.validation.references import FORM, is_reference, resolve

if TYPE_CHECKING:
    from torchmetrics import Metric, MetricCollection

    MetricLike: TypeAlias = str | Metric | MetricCollection | type[Metric] | Function

TASKS: dict[str, str] = {
    "classification": "classification:Classification",
    "multilabel": "ready.multilabel:Multilabel",
    "regression": "ready.regression:Regression",
    "segmentation": "ready.segmentation:Segmentation",
    "detection": "ready.detection:Detection",
    "language-modelling": "ready.language_modelling:LanguageModelling",
    "token-classification": "ready.token_classification:TokenClassification",
    "embedding": "ready.embedding:Embedding",
    "token-distribution": "ready.token_distribution:TokenDistribution",
    "agreement": "ready.agreement:Agreement",
    "custom": "ready.custom:Custom",
}
"""Name -> module below this folder, and class."""


def make_task(
    task: str | Task,
    *,
    metric: MetricLike | None = None,
    loss: str | Function | None = None,
    higher_is_better: bool | None = None,
) -> Task:
    """Returns a task by its name, or of the user's own.

    Args:
        task: One of :data:`TASKS`, the path ``package.module:Class`` of a class derived from
            :class:`Task`, or a task.
        metric: What the score is made from instead: the name of a metric that the task offers; a
            ``torchmetrics.Metric``, its class, or a ``MetricCollection`` whose first one counts; a
            function of outputs and targets that returns a number; or the path of any of these. A
            function gets the outputs and targets of all samples at once, on the processor; where
            that is too much to keep, write a ``Metric``, which takes batch by batch.
        loss: In place of the task's: a function of outputs and targets that returns the mean over
            the samples, a loss module, its class, or the path of any of these.
        higher_is_better: Whether a higher metric is better; not needed where the metric says it by
            an attribute of that name, as those of ``torchmetrics`` do and functions can.

    Raises:
        InputDataError: If there is no such task or metric, or it is not said what is better.
    """
    found = _named(task) if isinstance(task, str) else task
    if not isinstance(found, Task):
        raise InputDataError(
            f"Expected a task, its name or the path {FORM} of its class, got "
            f"{type(task).__name__}: one of {', '.join(TASKS)}."
        )
    if found.needs_own and (metric is None or loss is None):
        raise InputDataError(
            f"Expected a metric and a loss with the task {found.name!r}, which has none itself: "
            f"pass metric= and loss=, functions of outputs and targets."
        )
    if metric is None and higher_is_better is not None:
        raise InputDataError(
            f"Expected higher_is_better with a metric, got it alone: the task {found.name!r} knows "
            f"what is better."
        )
    if metric is None and loss is None:
        return found
    own_metric = None if metric is None else _metric_of(found, metric, higher_is_better)
    return OwnTask(found, metric=own_metric, loss=None if loss is None else _loss_of(loss))


def _named(name: str) -> Task:
    if name in TASKS:
        module, _, kind = TASKS[name].partition(":")
        made: Task = getattr(importlib.import_module(f"{__package__}.{module}"), kind)()
        return made
    if not is_reference(name):
        raise InputDataError(unknown("task", name, sorted(TASKS), f", or {FORM} for your own"))
    return _own_task(name)


def _own_task(path: str) -> Task:
    """Builds a user's task; what its code raises is not caught."""
    found = resolve(path, "task")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise InputDataError(
            f"Expected the task {path} to implement {missing}, got a class without."
        )
    task = found() if inspect.isclass(found) or inspect.isfunction(found) else found
    if not isinstance(task, Task):
        raise InputDataError(
            f"Expected {path!r} to be a class derived from amc_compress.learners.Task, or a "
            f"function that returns one, got {type(task).__name__}."
        )
    if not hasattr(task, "name"):
        task.name = path
    if not isinstance(getattr(task, "metric", None), str):
        raise InputDataError(
            f'Expected the task {path} to name its metric, as in metric = "accuracy", got none.'
        )
    return task


def _metric_of(task: Task, metric: Any, higher: bool | None) -> OwnMetric:
    """Returns a metric of whatever kind."""
    found = metric
    if isinstance(metric, str):
        offered = {task.metric: Measure(task.higher_is_better, _best(task)), **task.offered}
        if metric in offered:
            if higher not in (None, offered[metric].higher_is_better):
                better = "higher" if offered[metric].higher_is_better else "lower"
                raise InputDataError(
                    f"Expected no higher_is_better={higher} for {metric!r}, of which {better} is "
                    f"better: leave it out."
                )
            return OfferedMetric(metric, offered[metric])
        if not is_reference(metric):
            raise InputDataError(
                unknown("metric", metric, sorted(offered), f", or {FORM} for your own")
            )
        found = resolve(metric, "metric")
    if inspect.isclass(found):
        found = _made(found, "metric")
    if hasattr(found, "update") and hasattr(found, "compute"):
        return LibraryMetric(found, _measure(_first_of(found), higher))
    if not callable(found):
        raise InputDataError(
            f"Expected a metric as a torchmetrics.Metric, a function, or the name or path of one, "
            f"got {type(found).__name__}."
        )
    return FunctionMetric(found, _measure(found, higher))


def _best(task: Task) -> float | None:
    return None if task.best_score is None else task.value(task.best_score)


def _first_of(metric: Any) -> Any:
    """Returns the metric itself, of a collection the first one."""
    items = getattr(metric, "values", None)
    return next(iter(items())) if callable(items) else metric


def _measure(metric: Any, higher: bool | None) -> Measure:
    """Returns what a metric says, by its own attributes where not told."""
    known = getattr(metric, "higher_is_better", None) if higher is None else higher
    if not isinstance(known, bool):
        name = getattr(metric, "__name__", type(metric).__name__)
        raise InputDataError(
            f"Expected to know whether a higher {name} is better, got neither: give it an "
            f"attribute higher_is_better = True or False, or say --lower-is-better (make_task "
            f"takes higher_is_better=)."
        )
    best = getattr(metric, "plot_upper_bound" if known else "plot_lower_bound", None)
    return Measure(known, float(best) if isinstance(best, int | float) else None)


def _loss_of(loss: Any) -> Function:
    found = resolve(loss, "loss") if isinstance(loss, str) else loss
    if inspect.isclass(found):
        found = _made(found, "loss")
    if not callable(found):
        raise InputDataError(
            f"Expected a loss as a function of outputs and targets, or the path {FORM} of one, got "
            f"{type(found).__name__}."
        )
    function: Function = found
    return function


def _made(kind: Callable[[], Any], what: str) -> Any:
    """Builds an object of a class that takes no arguments."""
    try:
        inspect.signature(kind).bind()
    except TypeError as error:
        raise InputDataError(
            f"Expected the {what} {kind.__name__} to need no arguments ({error}): make the object "
            f"yourself, and name that, or pass it."
        ) from error
    return kind()
