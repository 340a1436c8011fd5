"""Channel groups are proved once for equal networks: proving them is most of a preparation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from amc_compress.learners.tracing import traced_model
from support.once import key_of


class _Proofs:
    """Stands in for the four functions by which :func:`trace` finds and proves groups.

    The groups depend on the network, the input and the ignored modules alone, and hold names, not
    modules. Networks that do not pickle are proved every time.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, Any] = {}
        self._real = traced_model.find_probes, traced_model.Watch, traced_model.prove
        self._real_branches = traced_model.prove_branches

    def probes(self, _model: Any, arguments: Any, _generator: Any) -> Any:
        return arguments

    def watch(self, _model: Any, _arguments: Any, ignore: Any) -> Any:
        return ignore

    def prove(self, model: Any, ignore: Any, arguments: Any, batch: int) -> Any:
        key = key_of((model, arguments, tuple(ignore), batch))
        if key is None:
            return self._proved(model, ignore, arguments, batch)
        if key not in self._known:
            self._known[key] = self._proved(model, ignore, arguments, batch)
        return copy.deepcopy(self._known[key])

    def branches(self, surgeon: Any, arguments: Any, batch: int) -> Any:
        key = key_of((surgeon.model, arguments, surgeon.grouping.graph, batch))
        if key is None or key not in self._known:
            find, _, _ = self._real
            probes = find(surgeon.model, arguments, torch.Generator().manual_seed(1))
            found = self._real_branches(surgeon, probes, batch)
            if key is None:
                return found
            self._known[key] = found
        return copy.deepcopy(self._known[key])

    def _proved(self, model: Any, ignore: Any, arguments: Any, batch: int) -> Any:
        find, watch, prove = self._real
        probes = find(model, arguments, torch.Generator().manual_seed(1))
        return prove(model, watch(model, probes, ignore), probes, batch)


_PROOFS = _Proofs()


@contextmanager
def proved_once() -> Iterator[None]:
    """In the block, networks that were traced before are not proved again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(traced_model, "find_probes", _PROOFS.probes)
        patch.setattr(traced_model, "Watch", _PROOFS.watch)
        patch.setattr(traced_model, "prove", _PROOFS.prove)
        patch.setattr(traced_model, "prove_branches", _PROOFS.branches)
        yield
