"""Outputs of networks: their tensors, and what counts of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: object) -> list[Tensor]:
    """Returns all tensors of an output: tuples, dictionaries, data classes and plain objects."""
    found: list[Tensor] = []
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += tensors_in(dict(vars(leaf)))
    return found


def main_output(output: object) -> object:
    """Returns the logits among what a network returns in training, the output itself if unsure.

    GoogLeNet, Inception and their kind return further classifiers besides the main one: as
    ``logits`` of an object or a dictionary, or as the first item of a tuple. The further ones are
    not part of the loss.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        first = output.get("logits")
    else:
        first = getattr(output, "logits", None)
        if first is None and isinstance(output, (tuple, list)) and output:
            first = output[0]
    return first if isinstance(first, Tensor) else output
