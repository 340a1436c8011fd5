"""Modules that compute with other tensors in place of their parameters."""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

_LISTS: tuple[str, ...] = ("_flat_weights", "_flat_weight_refs")


@contextmanager
def substituted(module: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Lets a module's forward read other tensors in place of its own parameters, in the block.

    Args:
        module: Its parameters stay registered, and are what state dicts and optimisers see.
        tensors: Name of a parameter -> what is read instead; gradients flow through it.
    """
    # What is in the instance's own dictionary is found before registered parameters are.
    own = vars(module)
    own.update(tensors)
    lists = {key: own[key] for key in _LISTS if key in own}
    if isinstance(module, nn.RNNBase):
        # These hand a list of all their parameters to the kernel.
        flat = [getattr(module, name, None) for name in module._flat_weights_names]
        own["_flat_weights"] = flat
        own["_flat_weight_refs"] = [None if w is None else weakref.ref(w) for w in flat]
    try:
        yield
    finally:
        for name in tensors:
            del own[name]
        own.update(lists)
