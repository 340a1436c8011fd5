"""Recurrent layers: what their classes tie, besides what their arithmetic does.

The rules follow an LSTM or GRU step by step as the additions and products that it is: the blocks
of its gates, its state and whatever reads it are tied by them. What they cannot see is that a
module makes its first state itself, as wide as its units are, and that it has one width for all its
layers and directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from amc_compress.learners.tracing.labels.label_state import LabelState

RECURRENT = (nn.RNNBase, nn.RNNCellBase)


@contextmanager
def visible_recurrence() -> Iterator[None]:
    """Disables fused recurrent layers on the processor, whose inside cannot be observed."""
    before = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(before)


def labelled_states(mode: LabelState) -> Callable[..., Any]:
    """Returns a hook before the forward of a recurrent module that gives it its first state.

    The module would make the same zeros, but without labels: as wide as it is whatever is cut.
    """

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        source = args[0] if args else kwargs.get("input")
        given = args[1] if len(args) > 1 else kwargs.get("hx")
        if given is not None or not isinstance(source, Tensor | PackedSequence):
            return None
        assert isinstance(module, RECURRENT)
        return args[:1], {**kwargs, "hx": _first_state(mode, module, source)}

    return hook


def _first_state(
    mode: LabelState, module: nn.RNNBase | nn.RNNCellBase, source: Tensor | PackedSequence
) -> Any:
    data = source if isinstance(source, Tensor) else source.data
    front: list[int] = []
    if isinstance(module, nn.RNNBase):
        front.append(module.num_layers * (2 if module.bidirectional else 1))
    if isinstance(source, PackedSequence):
        front.append(int(source.batch_sizes[0]))
    elif source.dim() > (2 if isinstance(module, nn.RNNBase) else 1):
        time_first = isinstance(module, nn.RNNBase) and not module.batch_first
        front.append(source.shape[1 if time_first else 0])
    widths = [getattr(module, "proj_size", 0) or module.hidden_size]
    if isinstance(module, nn.LSTM | nn.LSTMCell):
        widths.append(module.hidden_size)
    states = [_zeros(mode, data, [*front, int(width)]) for width in widths]
    return states[0] if len(states) == 1 else tuple(states)


def _zeros(mode: LabelState, like: Tensor, shape: list[int]) -> Tensor:
    zeros = torch.zeros(shape, dtype=like.dtype, device=like.device)
    mode.set_label(zeros, mode.table.fresh(shape[-1]).expand(shape))
    return zeros


def tie_layers(mode: LabelState, module: nn.Module) -> None:
    """Ties the units of all layers and directions of a recurrent module, which has one width.

    Those with a projection stay whole: the kernels tell by its width whether there is one, so that
    it must be another than that of the units whatever is cut.
    """
    named = dict(module.named_parameters(recurse=False))
    has_projection = bool(getattr(module, "proj_size", 0))
    for start, axis in (("weight_hh", 1), ("weight_hr", 1)):
        axes = [
            mode.axis_labels[id(tensor)][axis]
            for name, tensor in named.items()
            if name.startswith(start) and id(tensor) in mode.axis_labels
        ]
        for ids in axes:
            mode.table.tie(axes[0], ids)
            if has_projection:
                mode.table.freeze(ids, "a recurrent layer with a projection keeps its widths")
