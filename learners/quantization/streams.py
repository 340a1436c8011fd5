"""Sums that layer norms read, and how their means are matched.

In a network of residual branches behind layer norms, what a branch adds makes up for what those
before it have lost. To match the outputs of every layer takes that away: of MiniLM at 3 bits a
cosine of 0.93 to the original's embeddings becomes 0.78. What has to be right is the sum that goes
through the network. Its mean is matched where a norm reads it, by the bias of the last layer that
adds to it (bias correction, Nagel et al. 2019, Sec. 4.2, of the sum instead of the layer).
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from amc_compress.learners.candidates.norms_before import is_channel_norm
from amc_compress.learners.layers.quantized import quantized_layers
from amc_compress.learners.tasks.inputs import Inputs, ask, counted_rows, hooked, mask_of, rows

_SAMPLES = 2
_EXACT = 1e-3  # of the largest number of a sum; a layer that adds to it differs by rounding

Streams = Mapping[str, str]
"""Layer norm -> the last layer that adds to what it reads."""


def find_streams(network: nn.Module, inputs: Inputs, layers: Iterable[str]) -> dict[str, str]:
    """Returns norm -> layer, where a change of the layer's bias is one of what the norm reads.

    Args:
        network: In ``eval`` mode; it is run twice, on two samples.
        inputs: What it is called with.
        layers: Layers to look at, modules by name.
    """
    modules = dict(network.named_modules())
    norms = [name for name, module in modules.items() if is_channel_norm(module)]
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
    with hooked([*_reading(network, norms, enter), *_leaving(network, watched, leave)]):
        _run(network, few)
    once = {n: x for n, x in owners.items() if len(read[n]) == runs[x] == 1}
    return _proved(network, few, once, {norm: read[norm][0] for norm in once})


def _proved(
    network: nn.Module, inputs: Inputs, owners: Streams, before: Mapping[str, Tensor]
) -> dict[str, str]:
    """Returns norm -> layer, where what the layer emits reaches the norm as it is, or in a sum.

    In one run: each norm gives the sum back what was added to it.
    """
    generator = torch.Generator().manual_seed(0)
    changes: dict[str, Tensor] = {}
    for norm, x in before.items():
        change = torch.randn(x.shape[-1], generator=generator).to(x)
        changes[norm] = change * x.abs().max()
    norm_of = {layer: norm for norm, layer in owners.items()}
    found: dict[str, str] = {}

    def shifted(layer: str, output: Tensor) -> Tensor:
        return output + changes[norm_of[layer]]

    def compare(norm: str, x: Tensor) -> None:
        error = (x - before[norm] - changes[norm]).abs().max()
        if bool(error <= _EXACT * changes[norm].abs().max()):
            found[norm] = owners[norm]
        x.copy_(before[norm])

    with hooked([*_leaving(network, norm_of, shifted), *_reading(network, owners, compare)]):
        _run(network, inputs)
    return {norm: layer for norm, layer in owners.items() if norm in found}


def stream_means(network: nn.Module, inputs: Inputs, norms: Collection[str]) -> dict[str, Tensor]:
    """Returns norm -> mean of what it reads at all places that are no padding, shape (width,)."""
    means: dict[str, Tensor] = {}
    mask = mask_of(inputs)

    def see(name: str, x: Tensor) -> None:
        means[name] = counted_rows(x.float(), mask).mean(0)

    with hooked(_reading(network, norms, see)):
        _run(network, inputs)
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
    with hooked(_reading(network, norms, correct)):
        _run(network, inputs)


@torch.no_grad()
def _run(network: nn.Module, inputs: Inputs) -> None:
    ask(network, inputs)


def _reading(
    network: nn.Module, norms: Iterable[str], see: Callable[[str, Tensor], None]
) -> Iterator[RemovableHandle]:
    """Shows what norms read; yields the hooks."""
    for name in norms:
        yield network.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: see(name, args[0])
        )


def _leaving(
    network: nn.Module, layers: Iterable[str], see: Callable[[str, Any], Tensor | None]
) -> Iterator[RemovableHandle]:
    """Shows what layers emit, in whose place a tensor is passed on; yields the hooks."""
    for name in layers:
        yield network.get_submodule(name).register_forward_hook(
            lambda _, __, output, name=name: see(name, output)
        )
