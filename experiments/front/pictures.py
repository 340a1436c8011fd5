"""A search as a picture of matplotlib: its course, and what its plans cost."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from amc_compress.runs.storage.trials import RecordedTrial
from amc_env import Budget
from amc_env.scores.metric import Metric

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BEST, _PLAN, _UNIFORM, _OUTSIDE = "#1668b8", "#9cc4ea", "#d9662b", "#b3372f"  # as in the report


def search_figure(
    trials: Sequence[RecordedTrial], search: Mapping[str, Any], budget: Budget, metric: Metric
) -> Figure:
    """Returns the picture of a search.

    Args:
        trials: In the order of the search.
        search: What the stage has noted: the best and the uniform plan.
        budget: Of the search.
        metric: What scores are made from.
    """
    # Not pyplot: it would choose a window system, and keep every figure.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    within = [trial for trial in trials if trial.within_budget]
    _course(left, within, search["uniform"]["reward"])
    _plans(right, within, search, budget, metric)
    return figure


def _course(axes: Axes, trials: Sequence[RecordedTrial], uniform: float) -> None:
    numbers = [trial.episode for trial in trials]
    rewards = [trial.reward for trial in trials]
    axes.scatter(numbers, rewards, s=14, color=_PLAN, label="one trial")
    axes.step(
        numbers, list(itertools.accumulate(rewards, max)), where="post", color=_BEST,
        label="best so far",
    )  # fmt: skip
    axes.axhline(uniform, color=_UNIFORM, linestyle="--", label="uniform plan")
    axes.set(xlabel="trial", ylabel="reward", title="Course of the search")
    axes.legend()


def _plans(
    axes: Axes,
    trials: Sequence[RecordedTrial],
    search: Mapping[str, Any],
    budget: Budget,
    metric: Metric,
) -> None:
    cost = next(iter(budget.bounds))
    shares = [trial.cost_ratio[cost] for trial in trials]
    axes.scatter(shares, [metric.value(t.score) for t in trials], s=14, color=_PLAN)
    for name, colour in (("uniform", _UNIFORM), ("best", _BEST)):
        found = search[name]
        axes.scatter(
            [found["cost_ratio"][cost]], [metric.value(found["score"])], s=50, color=colour,
            label=f"{name} plan",
        )  # fmt: skip
    axes.axvline(budget.bounds[cost][1], color=_OUTSIDE, linestyle=":", label="budget")
    axes.set(xlabel=f"{cost}, share of the original", ylabel=metric.title, title="Plans")
    axes.legend()
