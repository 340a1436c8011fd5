"""What travels to a worker once: the function that answers requests, with all that it needs."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import cloudpickle

from amc_env import ArgumentError
from amc_env.validation.sentences import first_line

Function = Callable[[Any], Any]


class RequestError(Exception):
    """A worker could not answer a request; says why in one sentence."""


_built: dict[str, Function] = {}


@dataclass(frozen=True)
class Payload:
    """A function as bytes, under the digest of its content.

    Args:
        data: As :func:`pickle.loads` reads it.
        key: SHA-256 of them.
    """

    data: bytes
    key: str

    @classmethod
    def of(cls, function: Function) -> Payload:
        """Packs a function.

        Raises:
            ArgumentError: If something that it holds cannot travel to another process.
        """
        try:
            data = cloudpickle.dumps(function)
        except Exception as error:  # any object may object in its own way
            raise ArgumentError(
                f"Expected what evaluates plans to be picklable for other processes, but "
                f"{first_line(error) or type(error).__name__}; evaluate in this process instead "
                f"(--workers 1)."
            ) from error
        return cls(data, hashlib.sha256(data).hexdigest())


def built(key: str, data: Callable[[], bytes | memoryview], threads: int) -> Function:
    """Returns the function of a payload, built once in this process.

    Args:
        key: Of the payload.
        data: Gets its bytes.
        threads: Threads of torch that this process computes with from now on.
    """
    if key not in _built:
        import torch

        torch.set_num_threads(threads)
        _built.clear()  # a worker serves one learner at a time
        _built[key] = pickle.loads(data())  # made by the process that started this one
    return _built[key]


def told(function: Function, request: Any) -> Any:
    """Returns the answer to a request.

    Raises:
        RequestError: In place of any other error: those of libraries may not travel.
    """
    try:
        return function(request)
    except Exception as error:
        raise RequestError(first_line(error) or type(error).__name__) from None
