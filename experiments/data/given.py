"""Loaders of the user's own, as a run uses them: batches of any kind, told apart by content."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from amc_compress.learners.tasks.inputs import Call, Inputs, Split, count, merged, moved, rows
from amc_compress.learners.tasks.task import Task
from amc_compress.learners.training.data_checks import seeded
from amc_env.errors import InputDataError

Loader = Iterable[Any]

_IMAGE_DIMENSIONS = 4


@dataclass(frozen=True)
class GivenData:
    """What ``DataSplits`` is for data with a name.

    Args:
        train: Batches to train on.
        calibration: Batches for statistics; often the same.
        validation: Batches that candidates are evaluated on.
        test: Batches that are looked at once, at the end; the validation batches where there are
            no others.
        example: One sample as the network takes it.
        content: What these data are, in words and digests: name of a part -> what it holds.
        name: Of the data, for reports.
        task: What the network is for, where nothing else is said.
        has_test: Whether ``test`` are batches that nothing else sees.
        n_classes: Unknown.
        class_names: Unknown.
        notes: What was done to make batches of the data.
    """

    train: Any
    calibration: Loader
    validation: Loader
    test: Loader
    example: Inputs
    content: Mapping[str, str]
    name: str = "loaders"
    task: str = "classification"
    has_test: bool = True
    n_classes: int | None = None
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=())

    @property
    def image_shape(self) -> tuple[int, int, int] | None:
        """``(channels, height, width)`` where the samples are images."""
        if not isinstance(self.example, Tensor) or self.example.ndim != _IMAGE_DIMENSIONS:
            return None
        _, channels, height, width = self.example.shape
        return channels, height, width


def given_data(
    train: Loader,
    validation: Loader,
    task: Task,
    *,
    test: Loader | None = None,
    calibration: Loader | None = None,
    notes: tuple[str, ...] = (),
) -> GivenData:
    """Looks at loaders: reads the first batch of each.

    Args:
        train: Batches to train on.
        validation: Batches to evaluate candidates on.
        task: What splits a batch.
        test: Batches for the end; the validation batches if None.
        calibration: Batches for statistics; the training batches if None.
        notes: For the user.

    Raises:
        InputDataError: If one of them has no batch, or can be read only once.
    """
    given = {"train": train, "validation": validation, "calibration": calibration, "test": test}
    known = {name: loader for name, loader in given.items() if loader is not None}
    batches = {name: first_batch(loader, name) for name, loader in known.items()}
    content = {name: _content(known[name], batch) for name, batch in batches.items()}
    inputs, _ = task.split(batches.get("calibration", batches["train"]))
    example: Inputs = rows(moved(inputs, "cpu"), slice(0, 1))
    return GivenData(
        train,
        train if calibration is None else calibration,
        validation,
        validation if test is None else test,
        example,
        content,
        has_test=test is not None,
        notes=notes,
    )


def first_batch(loader: Loader, name: str) -> Any:
    """Returns the first batch of a loader, the same one at each call.

    Args:
        loader: Of the user's; the order of one that shuffles is decided by a seed.
        name: What errors call it.

    Raises:
        InputDataError: If there is none, or the loader can be read only once.
    """
    if isinstance(loader, Iterator) or not isinstance(loader, Iterable):
        raise InputDataError(
            f"Expected {name} as a loader or a list of batches that can be read again and again, "
            f"got {type(loader).__name__}: pass list(...) of its batches, or the loader itself."
        )
    with _repeatable(loader):
        for batch in loader:
            return batch
    raise InputDataError(f"Expected at least one batch in {name}, got none.")


@contextmanager
def _repeatable(loader: Loader) -> Iterator[None]:
    """Seeds in the block what shuffles and augments: torch, NumPy and Python."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002  # transforms draw from it
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    try:
        with seeded(loader, 0):
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


def _content(loader: Loader, batch: Any) -> str:
    """Returns how many batches there are, and a digest of the first one."""
    length = f"{len(loader)} batches" if isinstance(loader, Sized) else "batches"
    return f"{length}, the first {digest(batch)}"


def digest(value: Any) -> str:
    """Returns a short text that differs where tensors, numbers or words in a structure do."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(part)
    return found.hexdigest()[:12]


def _parts(value: Any) -> Iterator[bytes]:
    if isinstance(value, Tensor):
        plain = value.detach().cpu().contiguous()
        yield f"{plain.dtype}{tuple(plain.shape)}".encode()
        yield plain.view(-1).view(torch.uint8).numpy().tobytes()
    elif isinstance(value, np.ndarray):
        yield f"{value.dtype}{value.shape}".encode() + value.tobytes()
    elif isinstance(value, Call):
        yield from _parts([value.args, value.kwargs])
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key).encode()
            yield from _parts(item)
    elif isinstance(value, list | tuple):
        yield f"{len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif isinstance(value, bool | int | float | str | bytes | None):
        yield repr(value).encode()
    else:  # an object: what it is called, as its address changes
        yield type(value).__qualname__.encode()


def first_inputs(loader: Loader, task: Task, limit: int) -> Inputs:
    """Returns the inputs of the first samples of a loader as one batch, on the processor.

    Fewer where the batches differ in form: those of the first ones that go together.

    Args:
        loader: Named or of the user's.
        task: What splits a batch.
        limit: How many samples at most.
    """
    found: list[Split] = []
    total = 0
    with seeded(loader, 0):
        for batch in loader:
            inputs, _ = task.split(batch)
            found.append(Split(moved(inputs, "cpu"), None))
            total += count(inputs)
            if total >= limit:
                break
    joined: Inputs = rows(merged(found)[0].inputs, slice(0, limit))
    return joined


class CountedBatches:
    """The batches of a loader, with the number of samples that were read.

    Args:
        loader: Any.
        task: What splits a batch.
    """

    def __init__(self, loader: Loader, task: Task) -> None:
        self._loader = loader
        self._task = task
        self.n_samples = 0

    def __iter__(self) -> Iterator[Any]:
        self.n_samples = 0
        for batch in self._loader:
            self.n_samples += count(self._task.split(batch)[0])
            yield batch
