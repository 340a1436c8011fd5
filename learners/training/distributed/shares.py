"""The share of every batch that a process trains on: one process's batches, cut into ranks."""

from __future__ import annotations

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, DistributedSampler, IterableDataset

from amc_compress.learners.tasks.inputs import Split, count, rows, tensors_of
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import Batches, split_batch, with_own_numbers
from amc_compress.learners.training.distributed.ranks import Ranks
from amc_env.errors import InputDataError


class Share(NamedTuple):
    """What a process sees of a batch.

    Attributes:
        batch: As the loader yields it: its own samples, or all of them.
        part: Takes the own samples out of all; ``None`` where there are no others.
        whole: Samples of the batch of all processes; ``None`` where only the batch tells.
    """

    batch: Any
    part: Callable[[Split], Split] | None = None
    whole: int | None = None


class SharedLoader:
    """Reads a loader of all processes' samples, and yields this process's share of each batch.

    All processes see the batches of one process, in its order, and take rows ``n r / R`` to
    ``n (r + 1) / R`` of a batch of ``n``. A ``DataLoader`` over a data set that is read by index
    reads the own rows alone; so does a loader with a method ``shares(rows)``, which returns what
    yields ``(own batch, samples of the whole one)``, or ``None`` if it cannot. Every other loader
    is read whole by all of them.

    Args:
        loader: As one process would read it.
        ranks: The processes.
        task: What a batch is.

    Raises:
        InputDataError: If the loader has cut its samples already.
    """

    def __init__(self, loader: Batches, ranks: Ranks, task: Task) -> None:
        if any(isinstance(s, DistributedSampler) for s in _samplers(loader)):
            raise InputDataError(
                "Expected a training loader of all samples, whose batches are cut into the shares "
                "of the processes here, got one with a DistributedSampler: take the sampler out."
            )
        self._ranks = ranks
        self._task = task
        self._loader = loader
        self._own: Callable[[Any], tuple[Share, str]] = self._cut
        self._indices: _OwnIndices | None = None
        shares = getattr(loader, "shares", None)
        if callable(shares) and (offered := shares(ranks.share)) is not None:
            self._loader, self._own = offered, _offered
        elif isinstance(loader, DataLoader) and is_read_by_index(loader):
            self._indices = _OwnIndices(loader.batch_sampler or (), ranks)
            self._loader, self._own = with_sampler(loader, self._indices), self._of_indices

    def epoch(self, seed: int) -> SharedEpoch:
        """Returns the shares of an epoch; its order is that of the seed in all processes.

        The random numbers of the loader are those that one process would have; what is drawn
        between two batches changes nothing.

        Args:
            seed: Of the epoch; the loader's own generators have it already.
        """
        skips = callable(getattr(self._loader, "from_batch", None))
        return SharedEpoch(partial(self._read, seed), skips=skips)

    def _read(self, seed: int, first: int) -> Iterator[Share]:
        checked = False
        loader: Any = self._loader
        with _seeded_everywhere(seed):
            for batch in _apart(loader.from_batch(first) if first else loader, seed):
                share, order = self._own(batch)
                if not checked:
                    self._ranks.check_equal(order, _other_order)
                    checked = True
                yield share

    def _of_indices(self, batch: Any) -> tuple[Share, str]:
        assert self._indices is not None
        whole, order = self._indices.told.popleft()
        return Share(batch, None, whole), order

    def _cut(self, batch: Any) -> tuple[Share, str]:
        split = split_batch(batch, "training ", task=self._task)
        order = digest(split.inputs if split.targets is None else split.targets)
        return Share(batch, self._rows, count(split.inputs)), order

    def _rows(self, split: Split) -> Split:
        found: Split = rows(split, self._ranks.share(count(split.inputs)))
        return found


def _offered(batch: Any) -> tuple[Share, str]:
    own, whole = batch
    return Share(own, None, whole), str(whole)


class SharedEpoch:
    """The shares of an epoch, in order.

    Args:
        read: Number of a batch -> the shares from there on.
        skips: Whether it can begin with another batch than the first.
    """

    def __init__(self, read: Callable[[int], Iterator[Share]], *, skips: bool) -> None:
        self._read = read
        self.from_batch = read if skips else None

    def __iter__(self) -> Iterator[Share]:
        return self._read(0)


class _OwnIndices:
    """A batch sampler that yields this process's share of another one's batches."""

    def __init__(self, batches: Iterable[Any], ranks: Ranks) -> None:
        self._batches = batches
        self._ranks = ranks
        self.told: deque[tuple[int, str]] = deque()
        """Of the batches on their way: samples of all processes, and a digest of their indices."""

    def __len__(self) -> int:
        return len(self._batches)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[list[Any]]:
        self.told.clear()
        for batch in self._batches:
            indices = list(batch)
            digest = hashlib.sha256(repr(indices).encode()).hexdigest()
            self.told.append((len(indices), digest))
            # A batch of fewer samples than processes is left out by all of them.
            yield indices[self._ranks.share(len(indices))] or indices[:1]


def is_read_by_index(loader: DataLoader[Any]) -> bool:
    """Whether a sampler alone says which samples a loader reads, and in which order."""
    return (
        type(loader) is DataLoader
        and loader.batch_sampler is not None
        and not isinstance(loader.dataset, IterableDataset)
        and loader.in_order
    )


def _samplers(loader: Any) -> Iterator[Any]:
    yield getattr(loader, "sampler", None)
    batches = getattr(loader, "batch_sampler", None)
    yield from (batches, getattr(batches, "sampler", None))


def with_sampler(loader: DataLoader[Any], sampler: Any) -> DataLoader[Any]:
    """Returns the same loader with another batch sampler."""
    return DataLoader(
        loader.dataset,
        batch_sampler=sampler,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        multiprocessing_context=loader.multiprocessing_context,
        generator=loader.generator,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


def _apart(loader: Batches, seed: int) -> Iterator[Any]:
    """Yields a loader's batches, with a stream of random numbers that only it draws from."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        iterator = iter(loader)
        state = torch.get_rng_state()
    yield from with_own_numbers(iterator, state)


@contextmanager
def _seeded_everywhere(seed: int) -> Iterator[None]:
    """Seeds Python's and NumPy's random numbers in the block; transforms draw from them."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def digest(value: Any) -> str:
    """Returns a digest of a structure's tensors."""
    found = hashlib.sha256()
    for tensor in tensors_of(value):
        content = tensor.detach().cpu().contiguous().view(-1)
        found.update(content.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def _other_order(first: str, other: str) -> str:
    return (
        "Expected a training loader that yields the same batches in every process, got others in "
        "one of them: let its order depend on torch's random numbers, on a generator or set_epoch "
        "of its own, or on the epoch alone."
    )
