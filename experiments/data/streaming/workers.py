"""Work done by processes of ``torch.utils.data.DataLoader``, in the order of the jobs."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from amc_compress.learners.tasks.inputs import mapped
from amc_env.errors import CompressionError, InputDataError
from amc_env.validation.sentences import first_line

Job = TypeVar("Job")
Result = TypeVar("Result")


def carried_out(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Iterator[Result]:
    """Yields ``function(job)`` for all jobs, in their order and whatever the number of workers.

    Two jobs of each worker are done ahead of what is taken, and no more: that bounds the memory.

    Args:
        function: Draws no random numbers but from what a job brings along. It pickles where
            processes are not forked.
        jobs: Plain values; small, as they go through a pipe.
        workers: Processes; with none, everything is done in this one.

    Raises:
        CompressionError: What the function raises of that kind, as it was raised.
        InputDataError: If a process was killed.
    """
    if not workers:
        yield from map(function, jobs)
        return
    loader: DataLoader[Any] = DataLoader(
        _Jobs(function),
        batch_size=None,
        sampler=jobs,
        num_workers=workers,
        collate_fn=_same,
        generator=torch.Generator(),  # otherwise it draws from the caller's random numbers
    )
    try:
        for result in loader:
            if isinstance(result, CompressionError):
                raise result
            yield result
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise InputDataError(
            f"A process that reads the data has ended ({first_line(error, 200)}): give fewer "
            f"--data-workers, or the machine more memory; a run goes on with --resume."
        ) from error


class _Jobs(Dataset[Any]):
    def __init__(self, function: Callable[[Any], Any]) -> None:
        self._function = function

    def __getitem__(self, job: Any) -> Any:
        try:
            # Shared by this thread: the one that sends it would free its memory out of order.
            result = mapped(Tensor.share_memory_, self._function(job))
        except CompressionError as error:  # the loader would add its own traceback to the sentence
            return error
        _give_back()
        return result


def _give_back() -> None:
    """Gives free memory back to the system, where the C library can.

    Aligned memory of a batch's size leaves holes in the heap of a worker that the next batch does
    not fit, so that it would grow by a batch each time.
    """
    with contextlib.suppress(OSError, TypeError, AttributeError):  # it is glibc's
        ctypes.CDLL(None).malloc_trim(0)


def _same(value: Any) -> Any:
    return value
