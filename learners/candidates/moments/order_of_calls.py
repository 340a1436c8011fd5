"""Runs of a network that end where nothing more is wanted of them.

Which layers run, how often and in which order is not known before a batch has run, and may differ
between batches. So the first pass over some batches runs them to their ends and writes it down;
later passes over the same ones, of the same network, end each at the last call that is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from amc_compress.learners.tasks.inputs import hooked


class OrderOfCalls:
    """The calls of some layers, batch by batch.

    Args:
        names: The layers; no run ends early without any.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._names = tuple(names)
        self._calls: list[list[str]] = []
        self._is_known = False
        self._wanted: Collection[str] = frozenset()
        self._batch = 0
        self._left = 0

    @contextmanager
    def following(self, network: nn.Module, wanted: Collection[str]) -> Iterator[None]:
        """Follows one pass over the batches, each of which goes through :meth:`run`.

        Args:
            network: The same in each pass.
            wanted: Layers that have to be called in this one.
        """
        self._wanted, self._batch = frozenset(wanted), 0
        handles = [
            network.get_submodule(name).register_forward_hook(self._hook(name), always_call=False)
            for name in self._names
        ]
        with hooked(handles):
            yield
        self._is_known = bool(self._names)

    def run(self, batch: Callable[[], object]) -> None:
        """Runs a batch, to its end or to the last call that is wanted."""
        if not self._is_known:
            self._calls.append([])
            batch()
            return
        calls = self._calls[self._batch]
        self._batch += 1
        self._left = max((i + 1 for i, name in enumerate(calls) if name in self._wanted), default=0)
        if not self._left:
            return
        try:
            batch()
        except _EnoughError:
            return

    def _hook(self, name: str) -> Callable[..., None]:
        def seen(*_: Any) -> None:
            if not self._is_known:
                self._calls[-1].append(name)
                return
            self._left -= 1
            if not self._left:
                raise _EnoughError

        return seen


class _EnoughError(BaseException):
    """Ends a run. No code of a network is meant to catch it."""
