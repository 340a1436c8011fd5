"""How much blocks of a network change what passes through them (Men et al. 2024, ShortGPT).

``BI = 1 - E[<x, y> / (|x| |y|)]`` over the positions of some samples, x the input of a block and y
its output. Blocks of little influence are those whose loss costs little.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import Inputs, ask, evaluating, mask_of, tensors_of
from amc_env.errors import InputDataError


class Span(NamedTuple):
    """A block, or a residual branch of one, by its modules.

    Attributes:
        first: The module that reads x.
        last: The one that writes y; of a branch, what is added to x.
        adds: Whether y is ``x + what last returns``.
    """

    first: str
    last: str
    adds: bool = False


def block_influence(
    network: nn.Module,
    batches: Iterable[Inputs],
    spans: Mapping[str, Span],
    *,
    axis: int = -1,
) -> dict[str, float]:
    """Returns the influence of blocks, from 0 (no change of direction) to 2.

    Args:
        network: The network; its mode and random numbers stay.
        batches: What it is called with. Padding, where an ``attention_mask`` says so, counts not.
        spans: Name -> block or branch. A module by itself is ``Span(name, name)``; attention with
            its norm before it ``Span(norm, attention, adds=True)``.
        axis: Of the channels in what the blocks pass on.

    Raises:
        InputDataError: If a block's input and output differ in shape, or it never ran.
        AttributeError: If there is no such module.

    Example:
        >>> net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        >>> found = block_influence(net, [torch.ones(2, 4)], {"all": Span("0", "1")})
        >>> 0.0 <= found["all"] <= 2.0
        True
    """
    meters = {name: _Meter(name, span.adds, axis) for name, span in spans.items()}
    with ExitStack() as stack, evaluating(network):
        for name, span in spans.items():
            first, last = network.get_submodule(span.first), network.get_submodule(span.last)
            meter = meters[name]
            for handle in (
                first.register_forward_pre_hook(meter.reads, with_kwargs=True),
                last.register_forward_hook(meter.writes),
            ):
                stack.callback(handle.remove)
        for batch in batches:
            mask = mask_of(batch)
            for meter in meters.values():
                meter.mask = mask
            ask(network, batch)
    return {name: meter.result() for name, meter in meters.items()}


class _Meter:
    """Adds up cosines at one block."""

    def __init__(self, name: str, adds: bool, axis: int) -> None:
        self.name, self.adds, self.axis = name, adds, axis
        self.mask: Tensor | None = None
        self._x: Tensor | None = None
        self._total, self._count = 0.0, 0

    def reads(self, _: nn.Module, args: Any, kwargs: Any) -> None:
        """Keeps what a block is called with."""
        self._x = next(tensors_of((args, kwargs)), None)

    def writes(self, _: nn.Module, __: Any, output: Any) -> None:
        """Compares what it returns."""
        x, y = self._x, next(tensors_of(output), None)
        if x is None or y is None or x.shape != y.shape:
            raise InputDataError(
                f"Expected a block whose input and output are alike, got {_shape(x)} and "
                f"{_shape(y)} of {self.name!r}; name modules that pass the same stream on."
            )
        x, y = x.double(), y.double()
        cosines = F.cosine_similarity(x, x + y if self.adds else y, self.axis)
        if self.mask is not None and cosines.shape == self.mask.shape:
            cosines = cosines[self.mask.to(cosines.device).bool()]
        self._total += float(cosines.sum())
        self._count += cosines.numel()

    def result(self) -> float:
        """Returns the influence."""
        if not self._count:
            raise InputDataError(
                f"Expected a block that runs on the batches, got none of {self.name!r}; give "
                f"batches that reach it."
            )
        return 1.0 - self._total / self._count


def _shape(value: Tensor | None) -> str:
    return "no tensor" if value is None else str(tuple(value.shape))
