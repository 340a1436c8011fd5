"""Errors that a user can act on; any other exception is a bug of this package."""

from __future__ import annotations


class CompressionError(Exception):
    """Root of all errors raised on bad input by this project."""


class ArgumentError(CompressionError, TypeError, ValueError):
    """An argument is of another type than its parameter, or outside of its range."""


class EvaluationError(CompressionError, ValueError):
    """A learner, a cost model or a reward function answered something that is no usable number."""


class InfeasibleBudgetError(CompressionError, ValueError):
    """No plan on the grid meets the budget."""


class PlanMismatchError(CompressionError, ValueError):
    """A plan does not fit the network it is applied to, or its file is damaged."""


class UntraceableModelError(CompressionError):
    """A network offers nothing that can be compressed safely."""


class InputDataError(CompressionError, ValueError):
    """Images, labels or weights are not what the network expects."""


class TrainingDivergedError(CompressionError):
    """A loss or a weight became NaN or infinite."""


class RunFolderError(CompressionError):
    """A run folder cannot be used: other version, truncated file, or another configuration."""


class MissingDependencyError(CompressionError, ImportError):
    """An optional package is needed; the message holds the line that installs it."""
