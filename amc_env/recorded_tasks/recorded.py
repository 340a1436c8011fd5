"""Recorded tasks: environments without network or data, from plans evaluated before.

A surrogate fitted to thousands of evaluated plans answers for every plan (the recorded ones too, so
that all answers are of one kind). NumPy is all that is needed; 300 episodes take seconds.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path

import numpy as np
import numpy.typing as npt

from amc_env.budgets.budget import Budget, BudgetLike
from amc_env.costs.costs import COSTS, CostModel, make_cost
from amc_env.env import DEFAULT_ACTION_MAPPING, CompressionEnv
from amc_env.errors import CompressionError
from amc_env.plan import CompressionPlan
from amc_env.recorded_tasks.recorded_file import RecordedTask, read_recorded
from amc_env.validation.checks import checked

FOLDER = "recorded_tasks"
"""The folder of the registered tasks' files, next to this module."""

Curves = dict[str, npt.NDArray[np.float64]]


@checked
class RecordedLearner:
    """A learner that answers from a record.

    ``layer_errors()`` and ``gradient_scores()`` are there if their curves were recorded, and are
    no attributes otherwise. There is no ``evaluate_full``: nothing can be evaluated again.

    Args:
        task: The record.

    Attributes:
        task: As given.
        graph: Facts about the network.
        decisions: What is to be decided.
        original_score: Score of the uncompressed network.
        metric: Name of the metric behind the score.
        higher_is_better: Whether the score is that metric, or its negative.
        best_score: The highest score there is; None if unknown.
        storage: How its layers are stored; None where costs are the default ones.
        cost_models: Costs that know the storage; empty if there is none.
    """

    def __init__(self, task: RecordedTask) -> None:
        self.task = task
        self.graph = task.graph
        self.decisions = task.decisions
        self.original_score = task.original_score
        self.metric = task.metric.name
        self.higher_is_better = task.metric.higher_is_better
        self.best_score = task.metric.best_score
        self.storage = task.storage
        self.cost_models: dict[str, CostModel] = {}
        if task.storage is not None:
            self.cost_models = {
                name: make_cost(name, task.graph, task.decisions, task.storage) for name in COSTS
            }
        for name, curves in task.curves.items():
            setattr(self, name, partial(_as_arrays, curves))

    @classmethod
    def load(cls, path: Path | Traversable) -> RecordedLearner:
        """Reads the file of a recorded task.

        Raises:
            CompressionError: If it is missing, damaged, something else, or of another version.
        """
        return cls(read_recorded(path))

    def evaluate(self, plan: CompressionPlan) -> float:
        """Returns the predicted score of a complete plan.

        Raises:
            PlanMismatchError: If the plan does not fit this network.
        """
        return self.task.surrogate.predict(plan.choices_for(self.decisions))


@checked
def make_recorded(
    task: str,
    budget: BudgetLike | None = None,
    action: str = DEFAULT_ACTION_MAPPING,
    reward: str = "accuracy",
    render_mode: str | None = None,
    cost_models: Mapping[str, str] | None = None,
) -> CompressionEnv:
    """Builds a recorded task.

    Args:
        task: Name of a file in ``amc_env/recorded_tasks`` (``"digits-channels"``), or the path
            of a file that ends in ``.npz``.
        budget: As in ``CompressionEnv``; None takes the one under which the plans were recorded.
            Other ones extrapolate the further they leave it.
        action: Action mapping, see ``CompressionEnv``.
        reward: Name from ``amc_env.REWARDS``, or ``"package.module:name"``.
        render_mode: ``"ansi"``, ``"rgb_array"`` or None.
        cost_models: Further costs by name, as in ``CompressionEnv``.

    Raises:
        CompressionError: If the file is missing, damaged or of another version.

    Warns:
        UserWarning: If the budget allows more than was recorded, or less than all of it.
    """
    learner = RecordedLearner.load(_find(task))
    env = CompressionEnv(
        learner,
        budget if budget is not None else learner.task.budget,
        action=action,
        reward=reward,
        cost_models=cost_models,
        render_mode=render_mode,
    )
    _warn_outside(env.budget, learner.task)
    return env


def recorded_names() -> list[str]:
    """Returns the names of the recorded tasks that come with the package."""
    folder = files("amc_env") / FOLDER
    if not folder.is_dir():
        return []
    names = [entry.name for entry in folder.iterdir()]
    return sorted(name.removesuffix(".npz") for name in names if name.endswith(".npz"))


def _find(task: str) -> Path | Traversable:
    if task.endswith(".npz"):
        return Path(task)
    if task not in recorded_names():
        available = ", ".join(recorded_names()) or "none"
        raise CompressionError(
            f"No recorded task {task!r} comes with this release (available: {available}); record "
            f"it as docs/recorded_tasks.md says, and give the path of the .npz file as task."
        )
    return files("amc_env") / FOLDER / f"{task}.npz"


def _warn_outside(asked: Budget, task: RecordedTask) -> None:
    recorded = Budget.parse(task.budget).bounds
    outside = [f"{name} without a bound" for name in recorded if name not in asked.bounds]
    for name, (_, upper) in asked.bounds.items():
        if name not in task.cost_range:
            continue
        low, high = task.cost_range[name]
        # The grid may not offer a plan that costs exactly what was allowed.
        high = max(high, recorded[name][1]) if name in recorded else high
        if not low <= upper <= high:
            outside.append(f"{name} up to {upper:.4g}, recorded {low:.4g} to {high:.4g}")
    if outside:
        warnings.warn(
            f"The budget leaves the recorded plans, so the surrogate extrapolates: "
            f"{'; '.join(outside)}. Record the task under this budget to trust its answers.",
            UserWarning,
            stacklevel=3,
        )


def _as_arrays(curves: Mapping[str, Sequence[float]]) -> Curves:
    return {key: np.array(curve, dtype=np.float64) for key, curve in curves.items()}
