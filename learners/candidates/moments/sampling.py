"""Rows of a layer's unfolded inputs, at random outputs of every sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from amc_compress.learners.layers.products import Product


def sample_rows(
    product: Product, positions: int, generator: torch.Generator, mask: Tensor | None = None
) -> Tensor:
    """Returns the columns of a layer's inputs at random outputs, drawn per sample.

    Args:
        product: What the layer computes.
        positions: Outputs per sample; all of them if there are fewer.
        generator: Source of the positions.
        mask: Tokens that count, shape (samples, tokens): what a network makes of padding is not
            read. All of them if the inputs are no such tokens.

    Returns:
        Shape (conv groups, samples * positions, n), columns ordered like the weight with outputs
        first, ``flatten(1)``.
    """
    if product.kernel:
        return _sample_patches(product, positions, generator)
    inputs = product.inputs.detach()
    if mask is not None and inputs.numel() == mask.numel() * inputs.shape[-1]:
        return _sample_masked(inputs.reshape(*mask.shape, -1), positions, generator, mask).float()
    return _sample_tokens(inputs, positions, generator).float()


def _sample_patches(product: Product, positions: int, generator: torch.Generator) -> Tensor:
    padded = product.inputs.detach()
    size = padded.shape[2:]
    outputs = [
        (length - dilation * (kernel - 1) - 1) // stride + 1
        for length, dilation, kernel, stride in zip(
            size, product.dilation, product.kernel, product.stride, strict=True
        )
    ]
    total = math.prod(outputs)
    n_images = padded.shape[0]
    if total <= positions:
        chosen = torch.arange(total).expand(n_images, total)
    else:
        chosen = torch.rand(n_images, total, generator=generator).topk(positions, 1).indices
    flat = torch.zeros(n_images, chosen.shape[1], 1, dtype=torch.int64)
    rest = chosen
    weight = 1  # flat index of one pixel step along the current axis
    for axis in reversed(range(len(size))):
        offset = torch.arange(product.kernel[axis]) * product.dilation[axis]
        start = (rest % outputs[axis]) * product.stride[axis]
        rest = rest // outputs[axis]
        index = (start.unsqueeze(-1) + offset) * weight  # (images, positions, kernel of axis)
        flat = (index.unsqueeze(-1) + flat.unsqueeze(-2)).flatten(2)
        weight *= size[axis]
    if product.is_flipped:
        flat = flat.flip(2)
    gathered = _gathered(padded, flat.flatten(1).to(padded.device))
    n_positions = chosen.shape[1]
    split = gathered.reshape(n_images, n_positions, flat.shape[2], product.groups, -1)
    rows = split.permute(3, 0, 1, 4, 2).reshape(product.groups, n_images * n_positions, -1)
    return rows.float()


def _gathered(images: Tensor, index: Tensor) -> Tensor:
    """Returns all channels at some pixels.

    Args:
        images: Shape (images, channels, *size).
        index: Of the pixels, flat, shape (images, pixels).

    Returns:
        Shape (images, pixels, channels).
    """
    pixels = images.flatten(2).transpose(1, 2)
    if images.dim() != 4 or not images.is_contiguous(memory_format=torch.channels_last):
        return pixels.gather(1, index.unsqueeze(2).expand(-1, -1, pixels.shape[2]))
    # Channels are neighbours in memory: whole pixels are copied, and nothing else is read.
    first = torch.arange(len(images), device=index.device).unsqueeze(1) * pixels.shape[1]
    flat = images.permute(0, 2, 3, 1).reshape(-1, pixels.shape[2])
    return flat.index_select(0, (first + index).flatten()).view(*index.shape, -1)


def _sample_masked(
    tokens: Tensor, positions: int, generator: torch.Generator, mask: Tensor
) -> Tensor:
    counts = mask.bool().cpu()
    order = torch.rand(mask.shape, generator=generator).masked_fill(~counts, -1.0)
    chosen = order.topk(min(positions, mask.shape[1]), 1).indices
    stays = counts.gather(1, chosen).to(tokens.device)
    index = chosen.to(tokens.device).unsqueeze(-1).expand(-1, -1, tokens.shape[-1])
    return tokens.gather(1, index)[stays].unsqueeze(0)


def _sample_tokens(inputs: Tensor, positions: int, generator: torch.Generator) -> Tensor:
    tokens = inputs.reshape(inputs.shape[0], -1, inputs.shape[-1])
    n_images, n_tokens, width = tokens.shape
    if n_tokens > positions:
        chosen = torch.rand(n_images, n_tokens, generator=generator).topk(positions, 1).indices
        index = chosen.to(inputs.device).unsqueeze(-1).expand(-1, -1, width)
        tokens = tokens.gather(1, index)
    return tokens.reshape(1, -1, width)
