"""The loss of a step as the module that ``DistributedDataParallel`` averages the gradients of."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from amc_compress.learners.training.distributed.ranks import Ranks
from amc_env.errors import InputDataError
from amc_env.validation.sentences import first_line

_NOISE = (
    "find_unused_parameters=True was specified",  # some networks use others in every step
    "Grad strides do not match bucket view",  # costs time alone
    "`broadcast_buffers` is deprecated",  # its successor is not in every release
)


class Gradients:
    """Computes losses, and the gradient of their mean over all processes.

    Args:
        network: What is trained.
        loss: Arguments of :meth:`loss` -> the whole loss, that of hooks included: which parameters
            take part in a step shows in it alone.
        ranks: The processes.
    """

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor], ranks: Ranks) -> None:
        self._network = network
        self._loss = loss
        self._ranks = ranks
        self._parallel: DistributedDataParallel | None = None

    def loss(self, *values: Any) -> Tensor:
        """Returns the loss of this process's share."""
        found: Tensor = (self._parallel or self._loss)(*values)
        return found

    @contextlib.contextmanager
    def summing(self, *, last: bool) -> Iterator[None]:
        """Adds gradients up in the block; they are averaged over the processes with the last.

        Both the loss and its gradient are computed within the block.
        """
        if self._ranks.size == 1:
            yield
            return
        with warnings.catch_warnings():
            for message in _NOISE:
                warnings.filterwarnings("ignore", message=f".*{message}")
            if self._parallel is None:  # not before the weights have their layout in memory
                self._parallel = DistributedDataParallel(
                    _Whole(self._network, self._loss),
                    broadcast_buffers=False,
                    find_unused_parameters=True,
                )
            with contextlib.nullcontext() if last else self._parallel.no_sync():
                yield

    def release(self) -> None:
        """Takes the wrapper off the network."""
        self._parallel = None


class _Whole(nn.Module):
    """A network with its loss."""

    def __init__(self, network: nn.Module, loss: Callable[..., Tensor]) -> None:
        super().__init__()
        self.network = network
        self._loss = loss

    def forward(self, *values: Any) -> Tensor:
        return self._loss(*values)


class Compiled(nn.Module):
    """A network that ``torch.compile`` runs, with the same weights; for training alone.

    Args:
        network: Its modules, hooks and mode stay what they are.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        run: Callable[..., Any] = torch.compile(network)
        self._run = (run,)  # in a tuple: it is no second child

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Runs the network.

        Raises:
            InputDataError: If it cannot be compiled.
        """
        try:
            return self._run[0](*args, **kwargs)
        except Exception as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            raise InputDataError(
                f"Expected a network that torch.compile takes, got {type(error).__name__} "
                f"({first_line(error, 150)}): train without compile."
            ) from error
