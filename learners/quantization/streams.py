"""Sums that layer norms read, and how their means are matched.

In a network of residual branches behind layer norms, what a branch adds makes up for what those
before it have lost. To match the outputs of every layer takes that away: of MiniLM at 3 bits a
cosine of 0.93 to the original's embeddings becomes 0.78. What has to be right is the sum that goes
through the network. Its mean is matched where a norm reads it, by the bias of the last layer that
adds to it (bias correction, Nagel et al. 2019, Sec. 4.2, of the sum instead of the layer).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.tasks.inputs import Inputs, ask, counted_rows, mask_of, rows

_SAMPLES = 2
_EXACT = 1e-3  # of the largest number of a sum; a layer that adds to it differs by rounding

Streams = Mapping[str, str]
"""Layer norm -> the last layer that adds to what it reads."""


def find_streams(network: nn.Module, inputs: Inputs, layers: Iterable[str]) -> dict[str, str]:
    """Returns norm -> layer, where a change of the layer's bias is one of what the norm reads.

    Args:
        network: In ``eval`` mode; it is run on two samples, once for each norm and once more.
        inputs: What it is called with.
        layers: Layers to look at, modules by name.
    """
    modules = dict(network.named_modules())
    norms = [name for name, module in modules.items() if _is_norm(module)]
    few = rows(inputs, slice(0, _SAMPLES))
    read: dict[str, list[Tensor]] = {}
    last: dict[torch.Size, str] = {}
    owners: dict[str, str] = {}
    runs: dict[str, int] = {}

    def leave(name: str, output: Any) -> None:
        runs[name] = runs.get(name, 0) + 1
        if isinstance(output, Tensor) and isinstance(modules[name].bias, Tensor):
            last[output.shape] = name

    def enter(name: str, x: Tensor) -> None:
        read.setdefault(name, []).append(x.clone())
        if (owner := last.pop(x.shape, None)) is not None:
            owners[name] = owner

    watched = [name for name in layers if hasattr(modules.get(name), "bias")]
    with _reading(network, norms, enter), _leaving(network, watched, leave), torch.no_grad():
        ask(network, few)
    return {
        norm: layer
        for norm, layer in owners.items()
        if len(read[norm]) == runs[layer] == 1 and _adds(network, few, layer, norm, read[norm][0])
    }


def _is_norm(module: nn.Module) -> bool:
    return isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1


def _adds(network: nn.Module, inputs: Inputs, layer: str, norm: str, before: Tensor) -> bool:
    """Whether what a layer emits reaches a norm as it is, added to something or alone."""
    generator = torch.Generator().manual_seed(0)
    change = torch.randn(before.shape[-1], generator=generator).to(before)
    change *= before.abs().max()
    after: list[Tensor] = []

    def shifted(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        return output + change

    handle = network.get_submodule(layer).register_forward_hook(shifted)
    try:
        with _reading(network, [norm], lambda _, x: after.append(x.clone())), torch.no_grad():
            ask(network, inputs)
    finally:
        handle.remove()
    error = (after[0] - before - change).abs().max()
    return bool(error <= _EXACT * change.abs().max())


def stream_means(network: nn.Module, inputs: Inputs, norms: Collection[str]) -> dict[str, Tensor]:
    """Returns norm -> mean of what it reads at all places that are no padding, shape (width,)."""
    means: dict[str, Tensor] = {}
    mask = mask_of(inputs)

    def see(name: str, x: Tensor) -> None:
        means[name] = counted_rows(x.float(), mask).mean(0)

    with _reading(network, norms, see), torch.no_grad():
        ask(network, inputs)
    return means


def match_streams(
    network: nn.Module, inputs: Inputs, streams: Streams, means: Mapping[str, Tensor]
) -> None:
    """Gives what norms read the means that it had, one norm after the other.

    Args:
        network: Quantized, changed in place: biases of its quantized layers.
        inputs: Of calibration, one batch.
        streams: See :func:`find_streams`.
        means: Of the float network on the same inputs, see :func:`stream_means`.
    """
    layers = quantized_layers(network)
    mask = mask_of(inputs)

    def correct(name: str, x: Tensor) -> None:
        change = means[name] - counted_rows(x.float(), mask).mean(0)
        bias = layers[streams[name]].bias
        assert isinstance(bias, Tensor)
        bias.add_(change.to(bias.dtype))
        # In place: what is added to the sum later has to be added to the corrected one.
        x.add_(change.to(x.dtype))

    norms = [name for name, layer in streams.items() if name in means and layer in layers]
    with _reading(network, norms, correct), torch.no_grad():
        ask(network, inputs)


@contextlib.contextmanager
def _reading(
    network: nn.Module, norms: Iterable[str], see: Callable[[str, Tensor], object]
) -> Iterator[None]:
    """Shows what norms read."""
    handles = [
        network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: _ignored(see(name, args[0]))
        )
        for name in norms
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def _leaving(
    network: nn.Module, layers: Iterable[str], see: Callable[[str, Any], object]
) -> Iterator[None]:
    """Shows what layers emit."""
    handles = [
        network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: _ignored(see(name, output))
        )
        for name in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _ignored(_: object) -> None:
    """Nothing: what a hook returns would take the place of what it was shown."""
