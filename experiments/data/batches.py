"""Batches of whatever holds a user's samples: loaders, lists of batches, data sets."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, TypeGuard

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    default_collate,
)

from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

Batches = Iterable[Any]


class Samples(Protocol):
    """Samples by their number, as ``torch.utils.data.Dataset`` and ``datasets.Dataset`` are."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


USUAL_BATCH = 128
_LEAST_BATCH = 8
_STEPS = 50


def fitting_batch(samples: int) -> int:
    """Returns a batch size that leaves 50 steps in an epoch, 8 to 128."""
    return min(USUAL_BATCH, max(_LEAST_BATCH, samples // _STEPS))


def to_batches(
    data: object,
    name: str,
    *,
    batch_size: int | None,
    shuffle: bool = False,
    seed: int = 0,
    workers: int = 0,
) -> Batches:
    """Returns data as batches that can be read again and again.

    Loaders and lists of batches are taken as they are. A ``torch`` data set, or one of the
    ``datasets`` library with a transform, is batched; samples ``(image, {"boxes": ...})``
    become lists of targets, all others what PyTorch's ``default_collate`` makes of them.

    Args:
        data: A ``DataLoader``, a list of batches, a data set, or anything else that is iterable.
        name: What errors call it, e.g. ``"the training data"``.
        batch_size: Samples in a batch of a data set. ``None`` for as many as suit: 128, and where
            they are shuffled, to train on, no more than leave 50 steps in an epoch.
        shuffle: Whether the samples of a data set are shuffled, in each pass anew.
        seed: Of their order.
        workers: Processes that read the samples of a data set.

    Raises:
        InputDataError: If it is none of these, or its samples cannot be batched.
    """
    if not has_samples(data):
        _check_batches(data, name)
        return data  # type: ignore[return-value]
    if len(data) == 0:
        raise InputDataError(f"Expected samples in {name}, got an empty {type(data).__name__}.")
    try:
        with _random_numbers(seed):
            collate_samples([data[0]])
    except (TypeError, RuntimeError) as error:
        raise InputDataError(
            f"Expected samples of tensors or numbers in {name}, got some that cannot be batched "
            f"({first_line(error, 120)}): give the data set a transform, or pass a DataLoader with "
            f"a collate_fn."
        ) from error
    if batch_size is None:
        batch_size = fitting_batch(len(data)) if shuffle else USUAL_BATCH
    # Batch norm cannot train on a single sample, so a lone last one is left out.
    lone = shuffle and len(data) > batch_size and len(data) % batch_size == 1
    return SampleLoader(
        data, batch_size, shuffle=shuffle, drop_last=lone, seed=seed, workers=workers
    )


class SampleLoader(DataLoader[Any]):
    """Batches of a data set: a function of the seed alone, however many processes read it.

    What transforms draw from the random numbers of torch, NumPy and Python is seeded batch by
    batch, and the numbers of the process that trains stay as they are.

    Args:
        data: The data set.
        batch_size: Samples in a batch.
        shuffle: Whether to shuffle them, in each pass anew.
        drop_last: Whether to leave a smaller last batch out.
        seed: Of the order and of what transforms draw.
        workers: Processes.
    """

    def __init__(
        self,
        data: Samples,
        batch_size: int,
        *,
        shuffle: bool,
        drop_last: bool,
        seed: int,
        workers: int,
    ) -> None:
        generator = torch.Generator().manual_seed(seed)
        order: Sampler[int] = (
            RandomSampler(data, generator=generator) if shuffle else SequentialSampler(data)
        )
        self._seeded = _SeededBatches(BatchSampler(order, batch_size, drop_last), generator)
        super().__init__(
            _SeededSamples(data),
            batch_sampler=self._seeded,
            collate_fn=collate_samples,
            num_workers=workers,
            generator=generator,
        )

    def from_batch(self, first: int) -> Iterator[Any]:
        """Returns an iterator over the batches of a pass from one of a number on."""
        return self.chosen(lambda number: number >= first)

    def chosen(self, wanted: Callable[[int], bool]) -> Iterator[Any]:
        """Returns an iterator over the batches of a pass whose numbers are wanted."""
        self._seeded.wanted = wanted
        try:
            return iter(self)
        finally:
            self._seeded.wanted = _every


def _every(number: int) -> bool:
    return True


class _SeededBatch(list[int]):
    """The numbers of the samples of a batch, and what seeds the transforms of them."""

    seed: int


class _SeededBatches(Sampler[list[int]]):
    """Batches with a seed each, which is drawn without moving the generator of the order."""

    def __init__(self, batches: BatchSampler, generator: torch.Generator) -> None:
        self._batches = batches
        self._generator = generator
        self.batch_size = batches.batch_size
        self.wanted: Callable[[int], bool] = _every

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        return self._those(self.wanted)

    def _those(self, wanted: Callable[[int], bool]) -> Iterator[list[int]]:
        own = torch.Generator()
        own.set_state(self._generator.get_state())
        for number, chosen in enumerate(self._batches):
            batch = _SeededBatch(chosen)
            batch.seed = int(torch.randint(2**32, (), generator=own))
            if wanted(number):
                yield batch


class _SeededSamples(Dataset[Any]):
    def __init__(self, data: Samples) -> None:
        self._data = data

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Any:
        return self._data[index]

    def __getitems__(self, batch: _SeededBatch) -> Sequence[Any]:
        several = getattr(self._data, "__getitems__", None)
        with _random_numbers(batch.seed):
            if callable(several):
                return list(several(list(batch)))
            return [self._data[index] for index in batch]


@contextmanager
def _random_numbers(seed: int) -> Iterator[None]:
    """Seeds torch, NumPy and Python in the block; afterwards all is as it was."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # transforms draw from it
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # and that of no GPU
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def has_samples(data: object) -> TypeGuard[Samples]:
    """Returns whether data are single samples: a map-style data set of torch or ``datasets``."""
    if isinstance(data, IterableDataset):
        return False
    return isinstance(data, Dataset) or (_is_of_datasets(data) and hasattr(data, "__getitem__"))


def _is_of_datasets(data: object) -> bool:
    """Whether data are of the ``datasets`` library, which is optional and slow to import."""
    return "datasets" in {kind.__module__.partition(".")[0] for kind in type(data).__mro__}


def collate_samples(samples: Sequence[Any]) -> Any:
    """Returns samples as one batch, as ``default_collate`` does unless they have boxes.

    Images with boxes become ``(images, list of targets)``, the images stacked where they are of
    one size, a list where they are not.
    """
    if not all(_is_scene(sample) for sample in samples):
        return default_collate(list(samples))
    images = [image for image, _ in samples]
    targets = [target for _, target in samples]
    if len({image.shape for image in images}) == 1:
        return torch.stack(images), targets
    return images, targets


def _is_scene(sample: object) -> bool:
    """Whether a sample is ``(image, {"boxes": ..., "labels": ...})``."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        return False
    image, target = sample
    return isinstance(image, Tensor) and isinstance(target, Mapping) and "boxes" in target


def _check_batches(data: object, name: str) -> None:
    """Rejects what is no loader; whether it can be read twice is seen when it is read."""
    if isinstance(data, Tensor | str | bytes | Mapping) or not isinstance(data, Iterable):
        raise InputDataError(
            f"Expected {name} as a DataLoader, a list of batches or a data set, got "
            f"{type(data).__name__}: wrap it, e.g. in torch.utils.data.DataLoader."
        )
    if _is_of_datasets(data):
        raise InputDataError(
            f"Expected batches in {name}, got a data set that is streamed, sample by sample: wrap "
            f"it in torch.utils.data.DataLoader, which makes batches."
        )
    if iter(data) is data:
        raise InputDataError(
            f"Expected {name} as a loader that can be read again and again, got a "
            f"{type(data).__name__}, which is read once: pass list(...) of its batches."
        )
