"""Tasks whose targets are what the original network answers."""

from __future__ import annotations

import copy
from abc import abstractmethod
from typing import Any, TypeVar

import torch
from torch import nn

from amc_compress.learners.tasks.inputs import (
    Inputs,
    ask,
    moved,
    tensors_of,
    to_inputs,
)
from amc_compress.learners.tasks.task import Task
from amc_env.errors import InputDataError

Self = TypeVar("Self", bound="FromOriginal")


class FromOriginal(Task):
    """Needs no labels: those in batches are left out.

    Of a tuple or list the last item is taken for labels, as :meth:`Task.split` says; give networks
    of several inputs a dictionary, or ``inputs_only``.

    Args:
        inputs_only: Whether all items of a tuple are inputs.
    """

    needs_original = True
    best_score = 1.0

    def __init__(self, *, inputs_only: bool = False) -> None:
        self.inputs_only = inputs_only
        self._original: tuple[nn.Module, torch.device] | None = None

    def split(self, batch: Any) -> tuple[Inputs, None]:
        """Returns the inputs alone."""
        if self.inputs_only and isinstance(batch, list | tuple):
            return to_inputs(batch[0] if len(batch) == 1 else tuple(batch)), None
        return super().split(batch)[0], None

    def check_targets(self, inputs: Inputs, targets: Any, name: str = "") -> None:
        """Checks nothing: the targets come from the original network."""

    def bind(self: Self, network: nn.Module, device: str | torch.device) -> Self:
        """Returns a copy that asks this network for targets."""
        found = copy.copy(self)
        found._original = (network, torch.device(device))
        return found

    def complete(self, inputs: Inputs, targets: Any) -> Any:
        """Returns what the original answers, where these inputs are.

        Raises:
            InputDataError: If the task is not bound to a network.
        """
        if targets is not None:
            return targets
        if self._original is None:
            raise InputDataError(
                f"Expected the task {self.name!r} to know the original network, got none: call "
                f"task.bind(network, device), and use what it returns."
            )
        network, device = self._original
        home = next(tensors_of(inputs)).device
        with torch.no_grad():
            raw = ask(network, moved(inputs, device))
        return moved(self.targets_of(self.outputs(raw), inputs), home)

    @abstractmethod
    def targets_of(self, outputs: Any, inputs: Inputs) -> Any:
        """Returns what is kept of the original's outputs as targets."""

    def identity(self) -> dict[str, Any]:
        """Returns the name, and which items of a tuple are inputs where that was said."""
        return super().identity() | ({"inputs_only": True} if self.inputs_only else {})
