"""The memory layout of images and weights: channels last, where the network can take it.

Convolutions are faster in it, but their outputs are then no longer laid out in the order of their
axes, and ``x.view(len(x), -1)`` on a map larger than 1 x 1 raises.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import Inputs, mapped, runs


def layout_name(layout: torch.memory_format) -> str:
    """Returns what objects that are pickled keep instead of a layout.

    PyTorch pickles a layout by a bare name that only a process which has it imported can find.
    """
    return str(layout).removeprefix("torch.")


def layout_named(name: str) -> torch.memory_format:
    """Returns the layout that :func:`layout_name` named."""
    layout = getattr(torch, name)
    assert isinstance(layout, torch.memory_format)
    return layout


def laid_out(images: Tensor, layout: torch.memory_format = torch.channels_last) -> Tensor:
    """Returns images of any dimension, 4-d ones in ``layout``, with exactly the strides of it.

    Images of one channel (or one pixel) count as contiguous in both layouts, whatever the stride
    along an axis of length 1 says. Convolutions choose the layout of their output by that stride:
    it has to be the same for all images that a network sees.
    """
    wanted = layout if images.dim() == 4 else torch.contiguous_format
    images = images.contiguous(memory_format=wanted)
    strides = torch.empty(images.shape, device="meta", memory_format=wanted).stride()
    return images if images.stride() == strides else images.as_strided(images.shape, strides)


def owned(values: Tensor) -> Tensor:
    """Returns values that share no memory with a larger tensor: a copy, if they are a part of one.

    A part keeps all of it in memory, and a pickle of a part holds all of it.
    """
    whole = values.untyped_storage().nbytes()
    return values if whole <= values.numel() * values.element_size() else values.clone()


def set_layout(network: nn.Module, layout: torch.memory_format) -> None:
    """Lays out the 4-d weights of a network, in place; one with 5-d weights stays as it is.

    Its weights stay normal tensors: those made in inference mode could never be trained again.
    """
    if layout == torch.channels_last and any(p.dim() == 5 for p in network.parameters()):
        return  # impossible: that format is one of four axes
    with torch.inference_mode(mode=False):
        network.to(memory_format=layout)  # type: ignore[call-overload]


def usable_layout(network: nn.Module, inputs: Inputs) -> torch.memory_format:
    """Returns channels last, or the contiguous layout for a network that it makes raise.

    Tried on the network with the weights as they are; in ``eval`` mode and without gradient, so
    that neither statistics nor random numbers move.

    Args:
        network: On the device of the inputs.
        inputs: Those of one sample are enough.
    """
    # A network that cannot take these images in any layout says so better where it is used.
    takes = runs(network, mapped(laid_out, inputs))
    return torch.channels_last if takes else torch.contiguous_format


def layout_of(network: nn.Module, inputs: Inputs) -> torch.memory_format:
    """Returns the usable layout of images and weights alike, tried on a copy.

    Args:
        network: On the device of the inputs; not changed.
        inputs: Those of one sample are enough.
    """
    tried = copy.deepcopy(network)
    set_layout(tried, torch.channels_last)
    return usable_layout(tried, inputs)
