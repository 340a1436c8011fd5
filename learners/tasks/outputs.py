"""Outputs of networks: their tensors, and what counts of them."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torch.utils._pytree import tree_leaves


def tensors_in(value: object) -> list[Tensor]:
    """Returns all tensors of an output: tuples, dictionaries, data classes and plain objects.

    A cache of keys and values, which a decoder hands itself for the next token, is no output.
    """
    found: list[Tensor] = []
    for leaf in tree_leaves(value, is_leaf=is_cache):
        if isinstance(leaf, Tensor):
            found.append(leaf)
        elif is_cache(leaf):
            continue
        elif isinstance(leaf, Mapping):
            found += tensors_in(dict(leaf))
        elif hasattr(leaf, "__dict__") and not isinstance(leaf, type):
            found += tensors_in(dict(vars(leaf)))
    return found


def is_cache(value: object) -> bool:
    """Whether something is a cache as those of ``transformers`` are."""
    return all(callable(getattr(value, name, None)) for name in ("update", "get_seq_length"))


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
