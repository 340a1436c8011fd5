"""The network is the same in all processes: at the start, after every epoch, and at its end."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, distributed, nn

from amc_compress.learners.training.distributed.ranks import Ranks
from amc_compress.learners.training.identity import copy_of, fingerprint

_BUFFERS = "buffers of the process"


def take_first_weights(network: nn.Module, ranks: Ranks) -> None:
    """Gives all processes the weights of the first one's network.

    Raises:
        InputDataError: If their networks are of other shapes.
    """
    if ranks.size == 1:
        return

    def message(first: str, other: str) -> str:
        return (
            f"Expected the same network in all processes, got one of {first} in the first and one "
            f"of {other} in another: start them all with the same command."
        )

    ranks.check_equal(fingerprint(network), message)
    state = ranks.from_first(lambda: copy_of(network))
    if not ranks.is_first:
        network.load_state_dict(state)


def check_same_training(identity: Mapping[str, Any], ranks: Ranks) -> None:
    """Checks that the processes have been given the same settings, teacher and hooks.

    Raises:
        InputDataError: If one differs; named.
    """

    def message(first: Mapping[str, Any], other: Mapping[str, Any]) -> str:
        key = next(key for key in (*first, *other) if first.get(key) != other.get(key))
        return (
            f"Expected the same training in all processes, but {key} is {first.get(key)!r} in the "
            f"first one and {other.get(key)!r} in another: start them all with the same command."
        )

    ranks.check_equal(identity, message)


def make_equal(networks: Sequence[nn.Module], ranks: Ranks, epoch: int) -> None:
    """Gives all processes the same networks after an epoch.

    Floating-point buffers that each process has tracked become their mean: running statistics are
    means over batches, so that these are of all shares. Those that were equal stay as they are, bit
    for bit; all other tensors have to be equal.

    Args:
        networks: What is trained, and its moving average.
        ranks: The processes.
        epoch: Its number, from 0.

    Raises:
        InputDataError: In all processes, if a tensor differs; named.
    """
    if ranks.size == 1:
        return
    for network in networks:
        _average_buffers(network, ranks.size)
        digests = {key: _digest(value) for key, value in network.state_dict().items()}

        def message(first: dict[str, str], other: dict[str, str]) -> str:
            name = next(key for key in first if first[key] != other.get(key))
            return (
                f"Expected equal networks in all {ranks.size} processes after epoch {epoch + 1}, "
                f"but {name!r} differs: a layer or hook changes it by what only its process sees; "
                f"seed it alike everywhere, or train in one process."
            )

        ranks.check_equal(digests, message)


@torch.no_grad()
def _average_buffers(network: nn.Module, size: int) -> None:
    for buffer in network.buffers():
        if buffer.is_floating_point() and buffer.numel():
            summed = buffer.to(torch.float64)
            distributed.all_reduce(summed)
            buffer.copy_(summed / size)


def own_buffers(networks: Sequence[nn.Module], ranks: Ranks) -> dict[str, Any]:
    """Returns what a process alone has inside an epoch, where there are several."""
    if ranks.size == 1:
        return {}
    return {_BUFFERS: [dict(network.named_buffers()) for network in networks]}


@torch.no_grad()
def load_own_buffers(networks: Sequence[nn.Module], state: Mapping[str, Any]) -> None:
    """Restores what :func:`own_buffers` returned, if it is among the state."""
    for network, stored in zip(networks, state.get(_BUFFERS, ()), strict=False):
        for name, buffer in network.named_buffers():
            buffer.copy_(stored[name])


def _digest(value: Any) -> str:
    if not isinstance(value, Tensor):
        return repr(type(value))
    content = value.detach().cpu().contiguous().view(-1)
    return hashlib.sha256(content.view(torch.uint8).numpy().tobytes()).hexdigest()
