"""Masks a copy of a network, so that it computes what a cut one must compute."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.tracing.labels.recurrent import visible_recurrence
from amc_compress.learners.tracing.masking.absence import Absence
from amc_compress.learners.tracing.slots import Slot


def mask_slots(
    copy: nn.Module,
    originals: Mapping[str, Tensor],
    slots: Iterable[Slot],
    alive: Tensor,
    averaged: Tensor,
    masked: set[str] | None = None,
) -> None:
    """Masks a copy of a network in place, whatever it was masked by before.

    Whatever reads a cut channel has zero weights for it, so that not even the shift of its batch
    norm leaks. Where statistics run over channels that is not enough: those that are cut hold NaN
    then, and the copy runs under :class:`Absence`.

    Args:
        copy: Of the original's shapes.
        originals: The original's parameters and buffers.
        slots: All axes of those that some group controls.
        alive: Which units stay, shape ``(n_units,)``.
        averaged: Which units a statistic is taken over, likewise.
        masked: Parameters of the copy that are masked, brought up to date; all may be if ``None``.
    """
    buffers = dict(copy.named_buffers())
    tensors = {**dict(copy.named_parameters()), **buffers}
    absent = averaged & ~alive
    is_absent = bool(absent.any())
    changed = [slot for slot in slots if slot.role == "consumer" or bool(averaged.any())]
    with torch.no_grad():
        for name in {slot.name for slot in changed}:
            if masked is None or name in masked or name in buffers:
                tensors[name].copy_(originals[name])
        filled = set()
        for slot in changed:
            if slot.role == "consumer" and _fill(tensors, slot, ~alive[slot.units], 0.0):
                filled.add(slot.name)
        for slot in changed if is_absent else ():
            if _fill(tensors, slot, absent[slot.units], math.nan):
                filled.add(slot.name)
    if masked is not None:
        masked.clear()
        masked |= filled
    _set_definition(copy, is_absent)


def _fill(tensors: Mapping[str, Tensor], slot: Slot, where: Tensor, value: float) -> bool:
    """Writes a value where the units of a slot are, and returns whether there were any."""
    tensor = tensors[slot.name]
    if not tensor.is_floating_point() or not bool(where.any()):
        return False
    tensor.index_fill_(slot.axis, where.nonzero()[:, 0].to(tensor.device), value)
    return True


class _UnderAbsence:
    """A forward that runs under :class:`Absence`.

    Args:
        module: Whose own forward it runs.
        forward: The one that it had as an attribute, if any.
    """

    def __init__(self, module: nn.Module, forward: Any) -> None:
        self.module = module
        self.forward = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with visible_recurrence(), Absence():
            if self.forward is not None:
                return self.forward(*args, **kwargs)
            return type(self.module).forward(self.module, *args, **kwargs)


def _set_definition(copy: nn.Module, is_absent: bool) -> None:
    attributes = vars(copy)
    forward = attributes.get("forward")
    if is_absent and not isinstance(forward, _UnderAbsence):
        attributes["forward"] = _UnderAbsence(copy, forward)
    elif not is_absent and isinstance(forward, _UnderAbsence):
        del attributes["forward"]
        if forward.forward is not None:
            attributes["forward"] = forward.forward
