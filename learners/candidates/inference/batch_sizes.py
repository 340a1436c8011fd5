"""How many samples go through a network at once."""

from __future__ import annotations

from amc_compress.learners.tasks.inputs import Inputs, count, rows, tensors_of

_LARGE = 3 * 64 * 64
_NUMBERS = 125 * _LARGE
_LEAST = 8  # fewer leave fast kernels idle


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


def handful(inputs: Inputs) -> Inputs:
    """Returns the samples that kernels and tracing are tried on: two of large ones, else all."""
    return rows(inputs, slice(0, 2)) if _numbers(inputs) > _LARGE else inputs


def _numbers(inputs: Inputs) -> int:
    """Returns the numbers of a sample."""
    return sum(tensor.numel() for tensor in tensors_of(inputs)) // max(count(inputs), 1)
