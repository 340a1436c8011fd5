"""Training hooks: masks, regularisers, auxiliary losses."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from amc_env.errors import InputDataError


class TrainingHook:
    """Base class of hooks: does nothing; subclasses override what they need.

    The training loop calls ``start`` once, then for every step ``before_step``, the forward pass,
    ``loss``, the optimiser, ``after_step``; and ``finish`` at the end, whatever ended it. A step
    that adds the gradients of several batches up has as many forward passes, each with its
    ``loss``, of which it takes the mean; one whose batch is left out has none. All state that a
    resumed training needs is a pure function of the step, or in :meth:`state_dict`.

    Where several processes train, each has hooks of its own: what they do to the network must
    follow from the weights and the step, which are the same everywhere.

    Attributes:
        name: Of the hook, unique in a training.
    """

    name = "hook"

    @property
    def may_start_be_kept(self) -> bool:
        """Whether the network before any step may be handed back if all epochs are worse.

        By default not if :meth:`is_ready` is overridden: the steps make something else of it.
        """
        return type(self).is_ready is TrainingHook.is_ready

    def identity(self) -> Mapping[str, Any]:
        """Returns the settings that must be equal for a run to be the same run; JSON values."""
        return {}

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Called with the networks before the first step, also of a resumed training.

        Args:
            model: What is trained, on its device.
            teacher: The network that teaches it, if there is one.
            total_steps: Optimiser steps of the whole training.
        """

    def before_step(self, step: int) -> None:
        """Called before the forward pass of ``step``, from 0."""

    def loss(self) -> Tensor | None:
        """Returns what is added to the loss of the step, a scalar, or ``None``."""
        return None

    def after_step(self, step: int) -> None:
        """Called after the weights have changed in ``step``, from 0."""

    def is_ready(self, step: int) -> bool:
        """Whether a network after ``step`` steps may be kept as the best one.

        A network that is still too large, however accurate, is none that was asked for.
        """
        return True

    def finish(self) -> None:
        """Removes what :meth:`start` has attached to the networks."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what cannot be found from the step: tensors, numbers, strings."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what :meth:`state_dict` returned."""


class KeptStatistics(TrainingHook):
    """Leaves the running statistics of batch norms alone, which normalise as in ``eval`` mode.

    For training data that are unlike those that the statistics are of: batches of few classes have
    a mean that is what the classes have in common, and taking it away takes them away.
    """

    name = "kept statistics"

    def __init__(self) -> None:
        self._norms: list[nn.Module] = []

    def start(self, model: nn.Module, teacher: nn.Module | None, total_steps: int) -> None:
        """Finds the batch norms."""
        self._norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]

    def before_step(self, step: int) -> None:
        """Puts them into ``eval`` mode, after whatever has put the network into its own."""
        for norm in self._norms:
            norm.eval()

    def finish(self) -> None:
        """Releases references to the network."""
        self._norms = []


def check_hooks(hooks: Sequence[TrainingHook]) -> None:
    """Validates training hooks: callable, with distinct names.

    Raises:
        InputDataError: If one is no :class:`TrainingHook`.
        ValueError: If two have the same name.
    """
    for hook in hooks:
        if not isinstance(hook, TrainingHook):
            raise InputDataError(
                f"Expected hooks of amc_compress.learners.training.TrainingHook, "
                f"got {type(hook).__name__}."
            )
    names = [hook.name for hook in hooks]
    if len(set(names)) < len(names):
        raise ValueError(f"Expected hooks of different names, got {', '.join(names)}.")
