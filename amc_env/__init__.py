"""The decision problem of model compression as a Gymnasium environment.

Importing the package registers the tasks, so ``gymnasium.make("amc_env:amc/digits-channels-v0")``
works from a script that knows only Gymnasium.
"""

from importlib.metadata import version

from amc_env.budgets.budget import Budget
from amc_env.costs.costs import COSTS, CostModel, make_cost
from amc_env.costs.storage import StorageFormat
from amc_env.env import CompressionEnv
from amc_env.errors import (
    ArgumentError,
    CompressionError,
    EvaluationError,
    InfeasibleBudgetError,
    InputDataError,
    MissingDependencyError,
    PlanMismatchError,
    RunFolderError,
    TrainingDivergedError,
    UntraceableModelError,
)
from amc_env.graph import Branch, ChannelGroup, ChannelParameters, LayerGraph, LayerSpec, Width
from amc_env.kinds import KINDS, Bar, DecisionKind, Panel, Quantity, register_kind, resolve_kind
from amc_env.one_shot import OneShotEnv
from amc_env.plan import (
    CompressionPlan,
    Decision,
    depth_decision,
    keep_ratio_decision,
    with_depth,
)
from amc_env.recorded_tasks.recorded import RecordedLearner
from amc_env.recorded_tasks.registration import TASKS, register_tasks
from amc_env.reward import REWARDS, Result, RewardFunction
from amc_env.scores.compressible import Compressible
from amc_env.scores.evaluations import Evaluation, Evaluations
from amc_env.scores.metric import Metric
from amc_env.scores.outcome import Outcome
from amc_env.vector_env import CompressionVectorEnv

__version__ = version("amc-compress")

__all__ = [
    "Budget",
    "CompressionEnv",
    "CompressionPlan",
    "CompressionVectorEnv",
    "Compressible",
    "Decision",
    "DecisionKind",
    "KINDS",
    "Quantity",
    "Panel",
    "Bar",
    "register_kind",
    "resolve_kind",
    "OneShotEnv",
    "Evaluation",
    "Evaluations",
    "Outcome",
    "keep_ratio_decision",
    "depth_decision",
    "with_depth",
    "COSTS",
    "CostModel",
    "make_cost",
    "RecordedLearner",
    "StorageFormat",
    "Metric",
    "REWARDS",
    "Result",
    "RewardFunction",
    "Branch",
    "ChannelGroup",
    "ChannelParameters",
    "LayerGraph",
    "LayerSpec",
    "Width",
    "TASKS",
    "register_tasks",
    "ArgumentError",
    "CompressionError",
    "EvaluationError",
    "InfeasibleBudgetError",
    "InputDataError",
    "MissingDependencyError",
    "PlanMismatchError",
    "RunFolderError",
    "TrainingDivergedError",
    "UntraceableModelError",
]

register_tasks()
