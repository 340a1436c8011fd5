"""Channel selections that are solved separately for every number of kept channels."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from amc_compress.learners.candidates.preparation import Samples
from amc_compress.learners.channel_pruning.learner import ChannelPruning
from amc_env.support.threads import limited_threads


class SolvedSelection(ChannelPruning):
    """Channel pruning whose choice of ``k`` units need not contain that of ``k - 1``.

    A selection is solved when it is first asked for, and then kept. Groups of which no consumer
    has input statistics are ranked by the ``criterion`` instead.
    """

    _selects_chains = False

    def _prepare(self, samples: Samples) -> None:
        self._selected: dict[tuple[str, int], Tensor] = {}
        super()._prepare(samples)

    def select(self, group: str, count: int) -> Tensor:
        """Returns the ``count`` units of a channel group that stay, sorted.

        A function of the prepared network alone: not of the plan, nor of what was asked before.

        Raises:
            ValueError: If the group has no so many units, or there is no such group.
        """
        self._check_selection(group, count)
        size = len(self.ranking[group])
        if count == size:
            return torch.arange(size)
        if (group, count) not in self._selected:
            with limited_threads(self.threads):  # as in an evaluation: sums depend on the threads
                solved = self._solve(group, count)
            units = super().select(group, count) if solved is None else solved
            self._selected[group, count] = units
        return self._selected[group, count].clone()

    @abstractmethod
    def _solve(self, group: str, count: int) -> Tensor | None:
        """Returns the sorted units that stay, ``count`` of them; ``None`` without statistics."""
