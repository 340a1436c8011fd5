"""How many samples go through a network at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from amc_compress.learners.tasks.inputs import Inputs, ask, count, hooked, rows, tensors_of
from amc_compress.learners.tasks.outputs import tensors_in

_LARGE = 3 * 64 * 64
_NUMBERS = 125 * _LARGE
_LEAST = 8  # fewer leave fast kernels idle
_NUMBERS_BETWEEN = 2**21
_LEAST_CACHED = 16
_NUMBERS_OUT = 2**26


def fitting(inputs: Inputs, most: int, least: int = _LEAST) -> int:
    """Returns the samples of a batch: fewer than ``most`` where they are large.

    At most as many numbers as 125 images of 64 x 64 pixels have. So what a network holds between
    its layers is bounded whatever the size of an image, and stays in blocks that the C library
    hands out again; larger ones it maps, and clears, afresh for every layer: a tenth of the time
    of ResNet-50 at 224 x 224. A kernel is proved for each batch size at the cost of two batches,
    which is what most of an evaluation was spent on with batches of 125 such images.

    Args:
        inputs: Some of them.
        most: Where they are small.
        least: However large they are.
    """
    return min(most, max(least, _NUMBERS // max(_numbers(inputs), 1)))


def in_cache(network: nn.Module, inputs: Inputs, most: int) -> int:
    """Returns the samples of a batch whose widest output between two layers stays in the caches.

    At most two million numbers. DenseNet-40 is faster by a tenth with 16 images at a time than with
    125, and a kernel, which is proved at the cost of two batches, is proved eight times as fast;
    narrower networks such as ResNet-20 are as fast as they get with all 125.

    Args:
        network: In ``eval`` mode.
        inputs: A handful that it takes.
        most: Where layers are narrow.
    """
    widest = 0

    def look(module: nn.Module, args: object, output: object) -> None:
        nonlocal widest
        if isinstance(output, Tensor):
            widest = max(widest, output.numel())

    hooks = [module.register_forward_hook(look) for module in network.modules()]
    with hooked(hooks), torch.inference_mode():
        ask(network, inputs)
    of_one = max(widest // max(count(inputs), 1), 1)
    return min(most, max(_LEAST_CACHED, _NUMBERS_BETWEEN // of_one))


def answered(network: nn.Module, inputs: Inputs, most: int) -> int:
    """Returns the samples of a batch whose outputs take no more than a quarter of a gigabyte.

    The logits of a block of 512 tokens among 32,000 are 64 MB in float32, those of 125 blocks 8 GB.

    Args:
        network: In ``eval`` mode.
        inputs: Some that it takes.
        most: Where outputs are small.
    """
    with torch.inference_mode():
        outputs = ask(network, rows(inputs, slice(0, 1)))
    numbers = sum(tensor.numel() for tensor in tensors_in(outputs))
    return min(most, max(1, _NUMBERS_OUT // max(numbers, 1)))


def handful(inputs: Inputs) -> Inputs:
    """Returns the samples that kernels and tracing are tried on: two of large ones, else all."""
    return rows(inputs, slice(0, 2)) if _numbers(inputs) > _LARGE else inputs


def _numbers(inputs: Inputs) -> int:
    """Returns the numbers of a sample."""
    return sum(tensor.numel() for tensor in tensors_of(inputs)) // max(count(inputs), 1)
