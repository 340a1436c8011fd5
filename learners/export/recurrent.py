"""Recurrent layers whose number of steps stays free while a network becomes a graph."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._decomp import decomposition_table

# Both are one operator of ONNX, over any number of steps. A plain RNN is written step by step.
_WHOLE = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


@contextmanager
def any_number_of_steps() -> Iterator[None]:
    """Lets ``torch.export`` know the shapes of recurrent layers without running their steps.

    It finds them by torch's loop over the steps, which fixes their number: layers behind then hold
    the length of the example.
    """
    with ExitStack() as stack:
        table = dict.fromkeys(_WHOLE, _empty)
        stack.enter_context(mock.patch.dict(decomposition_table, table))
        for operator in _WHOLE:
            kernels = dict.fromkeys(operator.py_kernels, _empty)
            stack.enter_context(mock.patch.dict(operator.py_kernels, kernels))
            # What torch has looked up before: it is looked up anew, and afterwards again.
            stack.enter_context(mock.patch.dict(operator._dispatch_cache, clear=True))
        yield


def _empty(
    x: Tensor,
    states: Tensor | Sequence[Tensor],
    params: Sequence[Tensor],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, ...]:
    """Returns tensors of the shapes of ``aten.lstm.input`` and ``aten.gru.input``.

    Args:
        x: (steps, samples, features), or the samples first.
        states: Of all layers and directions, (layers x directions, samples, units); of an LSTM
            also its cells, whose units are more where the states are projected.
        params: Unused.
        has_biases: Unused.
        num_layers: Unused.
        dropout: Unused.
        train: Unused.
        bidirectional: Whether the steps bear both directions' units.
        batch_first: Unused: the steps come as ``x`` does.
    """
    states = [states] if isinstance(states, Tensor) else list(states)
    directions = 2 if bidirectional else 1
    steps = x.new_empty((*x.shape[:2], directions * states[0].shape[-1]))
    return (steps, *(torch.empty_like(state) for state in states))


__all__ = ["any_number_of_steps"]
