"""The batches of an optimiser step: several of the loader's, and of each this process's share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol

from amc_compress.learners.tasks.inputs import Inputs, count
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import Batches, BatchReader
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_compress.learners.training.distributed.shares import Share, SharedLoader
from amc_env.errors import InputDataError


@dataclass(frozen=True)
class Part:
    """Samples that the network is asked for at once.

    The gradient of a step is that of the mean loss over all samples of all its parts in all
    processes, whatever the size of each.

    Attributes:
        inputs: Of the network.
        targets: What is right.
        own: Number of samples.
        whole: The same in all processes.
        of_samples: Factor of what is a mean over samples.
        of_terms: Factor of the task's loss, see ``Task.loss_terms``.
    """

    inputs: Inputs
    targets: Any
    own: int
    whole: int
    of_samples: float = 1.0
    of_terms: float = 1.0


class Step(NamedTuple):
    """What a step of the optimiser takes.

    Attributes:
        parts: To train on; none if all its batches are too small.
        batches: Of the loader.
    """

    parts: list[Part]
    batches: int


class Reading(Protocol):
    """Where an epoch goes on."""

    def rest_of(self, loader: Batches) -> Iterable[Any]:
        """Returns the batches that are left."""


def steps_per_epoch(batches: int, accumulate: int) -> int:
    """Returns the optimiser steps of an epoch of so many batches."""
    return math.ceil(batches / accumulate)


class StepReader:
    """Reads the parts of every step of an epoch.

    Args:
        loader: As one process would read it.
        reader: Reads a batch.
        task: What a batch is.
        ranks: The processes.
        accumulate: Batches of a step.
        least: Smallest share of a process that the network trains on, where there are several.
        takes_one: Whether the network trains on a single sample, where this is the only process.
    """

    def __init__(
        self,
        loader: Batches,
        reader: BatchReader,
        task: Task,
        ranks: Ranks,
        *,
        accumulate: int,
        least: int,
        takes_one: Callable[[Inputs, Any], bool],
    ) -> None:
        self._reader = reader
        self._task = task
        self._ranks = ranks
        self._accumulate = accumulate
        self._least = least
        self._takes_one = takes_one
        self._loader = loader
        self._shared = None if ranks.size == 1 else SharedLoader(loader, ranks, task)

    def steps(self, seed: int, position: Reading) -> Iterator[Step]:
        """Yields the steps that are left of an epoch.

        Args:
            seed: Of the epoch.
            position: How far it has come.
        """
        parts: list[Part | None] = []
        for share in self._shares(seed, position):
            parts.append(self._part(share))
            if len(parts) == self._accumulate:
                yield Step(self._weighed(parts), len(parts))
                parts = []
        if parts:
            yield Step(self._weighed(parts), len(parts))

    def _shares(self, seed: int, position: Reading) -> Iterator[Share]:
        if self._shared is not None:
            yield from position.rest_of(self._shared.epoch(seed))
            return
        for batch in position.rest_of(self._loader):
            yield Share(batch)

    def _part(self, share: Share) -> Part | None:
        """Returns what the process sees of a batch; None if the batch is left out by all."""
        if share.whole is not None and share.whole < self._least * self._ranks.size:
            return None
        inputs, targets = self._reader.read(share.batch, share.part)
        own = count(inputs)
        if share.whole is None and own == 1 and not self._takes_one(inputs, targets):
            return None
        return Part(inputs, targets, own, own if share.whole is None else share.whole)

    def _weighed(self, parts: Sequence[Part | None]) -> list[Part]:
        found = [part for part in parts if part is not None]
        if self._ranks.size == 1 and len(found) <= 1:
            return found  # means are means
        samples = sum(part.whole for part in found)
        terms = [self._task.loss_terms(part.inputs, part.targets) for part in found]
        (all_terms,) = self._ranks.totals(sum(terms))
        size = self._ranks.size  # gradients are averaged over the processes
        return [
            replace(
                part,
                of_samples=size * part.own / samples,
                of_terms=size * own_terms / max(all_terms, 1.0),
            )
            for part, own_terms in zip(found, terms, strict=True)
        ]

    def nothing_left(self, *, had_batches: bool) -> InputDataError:
        """Returns the error of an epoch without anything to train on."""
        if not had_batches:
            return InputDataError("Expected at least one training image, got none.")
        least, among = 2, ""
        if self._ranks.size > 1:
            least, among = self._least * self._ranks.size, f" for {self._ranks.size} processes"
        return InputDataError(
            f"Expected training batches of at least {least} samples{among}, got smaller ones, of "
            f"which a batch norm has no variance or a process no sample: give a larger batch size."
        )
