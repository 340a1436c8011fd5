"""The processes that train one network together, as ``torch.distributed`` counts them."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed

from amc_env.errors import CompressionError, InputDataError

Value = TypeVar("Value")
_STATES = "of all processes"


@dataclass(frozen=True)
class Ranks:
    """This process among those of the process group; alone where there is none.

    Methods with ``all``, ``first`` or a sum in what they do are collectives: every process calls
    them, in the same order.

    Attributes:
        rank: Of this process, from 0; the first one alone writes files and prints.
        size: Number of processes.
        device: Where numbers are summed.
    """

    rank: int = 0
    size: int = 1
    device: str | torch.device = "cpu"

    @classmethod
    def joined(cls, device: str | torch.device) -> Ranks:
        """Returns the processes of the default process group, which the caller has initialised."""
        if not (distributed.is_available() and distributed.is_initialized()):
            return ALONE
        return cls(distributed.get_rank(), distributed.get_world_size(), device)

    @property
    def is_first(self) -> bool:
        """Whether this process is the one that writes and prints."""
        return self.rank == 0

    def share(self, count: int) -> slice:
        """Returns which of ``count`` samples in a row are this process's; shares differ by one."""
        return slice(count * self.rank // self.size, count * (self.rank + 1) // self.size)

    def totals(self, *numbers: float) -> list[float]:
        """Returns sums over all processes, in float64."""
        if self.size == 1:
            return list(numbers)
        summed = torch.tensor(numbers, dtype=torch.float64, device=self.device)
        distributed.all_reduce(summed)
        found: list[float] = summed.tolist()
        return found

    def from_first_flag(self, value: bool) -> bool:
        """Returns the first process's value, at the cost of one number."""
        return bool(self.totals(float(value and self.is_first))[0])

    def gathered(self, state: Any) -> Any:
        """Returns the states of all processes, of which :meth:`own` takes one out again."""
        if self.size == 1:
            return state
        states: list[Any] = [None] * self.size
        distributed.all_gather_object(states, state)
        return {_STATES: states}

    def own(self, gathered: Any) -> Any:
        """Returns the state of this process; no collective."""
        return gathered if self.size == 1 else gathered[_STATES][self.rank]

    def from_first(self, function: Callable[[], Value]) -> Value:
        """Returns what the first process computes, the only one that calls ``function``.

        Raises:
            Exception: Of the first process, in all of them.
        """
        if self.size == 1:
            return function()
        told: list[Any] = [None]
        error: BaseException | None = None
        if self.is_first:
            try:
                told = [(function(), None)]
            except Exception as raised:
                error = raised
                told = [(None, _portable(raised))]
        distributed.broadcast_object_list(told, src=0)
        if error is not None:
            raise error
        value, theirs = told[0]
        if theirs is not None:
            raise theirs
        found: Value = value
        return found

    def to_first(self, value: Any) -> list[Any]:
        """Returns the values of all processes in the first one, and none in the others."""
        found: list[Any] = [None] * self.size
        distributed.gather_object(value, found if self.is_first else None)
        return found if self.is_first else []

    def raise_any(self, error: Exception | None) -> None:
        """Raises the error of the first process that has one.

        Raises:
            Exception: In all processes.
        """
        errors: list[Any] = [None] * self.size
        distributed.all_gather_object(errors, None if error is None else _portable(error))
        for rank, found in enumerate(errors):
            if found is not None:
                raise error if error is not None and rank == self.rank else found

    def check_equal(self, value: Any, message: Callable[[Any, Any], str]) -> None:
        """Checks that a value is the same in all processes.

        Args:
            value: What pickles and can be compared.
            message: Value of the first process, value of another -> the sentence of the error.

        Raises:
            InputDataError: In all processes, if it is not.
        """
        if self.size == 1:
            return
        values: list[Any] = [None] * self.size
        distributed.all_gather_object(values, value)
        for other in values[1:]:
            if other != values[0]:
                raise InputDataError(message(values[0], other))


ALONE = Ranks()
"""One process, without any other."""


def _portable(error: Exception) -> Exception:
    """Returns an exception that can be sent to another process."""
    try:
        found = pickle.loads(pickle.dumps(error))
        if type(found) is type(error) and str(found) == str(error):
            return error
    except Exception:  # constructors with arguments of their own
        pass
    return CompressionError(f"{type(error).__name__}: {error}")
