"""Validation by all processes: each asks the network for some batches, the first one measures."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from amc_compress.learners.tasks.inputs import moved
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import Batches, split_batch
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_compress.learners.training.distributed.shares import digest, is_read_by_index, with_sampler
from amc_compress.learners.training.evaluation import Answer, Asked, asking, computed, measured

Wanted = Callable[[int], bool]
"""Number of a batch -> whether this process needs it."""


def measured_by_all(
    model: nn.Module,
    loader: Batches,
    name: str,
    task: Task,
    dtype: torch.dtype,
    device: str | torch.device,
    *,
    ranks: Ranks,
) -> dict[str, float]:
    """Returns what :func:`measured` does, bit for bit, in all processes.

    Of R processes each asks its network for every R-th batch, whole as in one process, and the
    first one measures all outputs in their order; so any metric will do, and what is on its way is
    one batch of each.

    Args:
        model: Equal in all processes.
        loader: As one process would read it. Loaders with a method ``chosen(wanted)`` make only the
            batches that are wanted, and so do those over data that are read by index, which must
            draw nothing at random; others make all of them in every process.
        name: As of :func:`measured`; so are the others.
        task: What the network is for.
        dtype: Type to compute in.
        device: Where to.
        ranks: The processes.

    Raises:
        InputDataError: As :func:`measured`, and if the loader yields other batches in another
            process.
    """
    if ranks.size == 1:
        return measured(model, loader, name, task, dtype, device)
    meter, total = task.meter(), 0
    own = _OwnBatches(loader, name, task, ranks)
    waiting: list[Answer] = []
    with asking(model):
        answers = _answers(own, Asked(model, name, task, dtype, device))
        while True:
            answer, error = None, None
            try:
                for one in waiting:
                    meter.update(moved(one.outputs, device), moved(one.targets, device))
                    total += one.samples
                answer = next(answers, None)
            except Exception as raised:  # of the network, the data or the metric
                error = raised
            there, failed = ranks.totals(answer is not None, error is not None)
            if failed:
                ranks.raise_any(error)
            if not there:
                break
            sent = ranks.to_first(None if answer is None else moved(answer, "cpu"))
            waiting = [one for one in sent if one is not None]
    ranks.check_equal(own.order(), _other_order)
    return ranks.from_first(lambda: computed(meter, total))


def _answers(own: _OwnBatches, asked: Asked) -> Iterator[Answer]:
    """Yields outputs of this process's batches; how to ask is settled by the first one of all."""
    for number, batch in own:
        if own.is_own(number):
            yield asked(batch)
        elif number == 0:
            asked.read(batch)


class _OwnBatches:
    """Yields numbers and batches: the first one, and those of this process."""

    def __init__(self, loader: Batches, name: str, task: Task, ranks: Ranks) -> None:
        self._loader, self._name, self._task, self._ranks = loader, name, task, ranks
        self._seen = hashlib.sha256()

    def is_own(self, number: int) -> bool:
        """Whether this process asks its network for a batch."""
        return number % self._ranks.size == self._ranks.rank

    def order(self) -> str:
        """Returns a digest of what tells the order of the batches, of all that were read."""
        return self._seen.hexdigest()

    def _is_wanted(self, number: int) -> bool:
        return number == 0 or self.is_own(number)

    def __iter__(self) -> Iterator[tuple[int, Any]]:
        loader: Any = self._loader
        chosen = getattr(loader, "chosen", None)
        if callable(chosen):
            made = chosen(self._is_wanted)
        elif isinstance(loader, DataLoader) and is_read_by_index(loader):
            made = with_sampler(loader, _Chosen(loader.batch_sampler, self._is_wanted, self._note))
        else:
            made = self._of_all(loader)
        return zip(filter(self._is_wanted, itertools.count()), made, strict=False)

    def _of_all(self, loader: Batches) -> Iterator[Any]:
        for number, batch in enumerate(loader):
            split = split_batch(batch, self._name, task=self._task)
            self._note(digest(split.inputs if split.targets is None else split.targets))
            if self._is_wanted(number):
                yield batch

    def _note(self, text: str) -> None:
        self._seen.update(text.encode())


class _Chosen:
    """A batch sampler that yields some of another one's batches."""

    def __init__(self, batches: Any, wanted: Wanted, note: Callable[[str], None]) -> None:
        self._batches, self._wanted, self._note = batches, wanted, note

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._batches):
            indices = list(batch)
            self._note(repr(indices))
            if self._wanted(number):
                yield indices


def _other_order(first: str, other: str) -> str:
    return (
        "Expected a validation loader that yields the same batches in every process, got others in "
        "one of them: do not shuffle it, or by torch's random numbers alone."
    )
