"""Arguments of a module call, flattened and rebuilt."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import (
    TreeSpec,
    keystr,
    tree_flatten,
    tree_flatten_with_path,
    tree_unflatten,
)

# What holds still. Anything else, such as a cache of keys and values, a forward may write into.
_PLAIN = (Tensor, int, float, complex, str, bytes, slice, range, Enum, type(None), torch.dtype,
          torch.device, torch.layout, torch.memory_format, torch.SymInt, torch.SymFloat,
          torch.SymBool)  # fmt: skip


def signature_of(cls: type[nn.Module]) -> inspect.Signature:
    """Returns the signature of a class's forward, without ``self``."""
    signature = inspect.signature(cls.forward)
    return signature.replace(parameters=list(signature.parameters.values())[1:])


def flattened(arguments: Mapping[str, Any]) -> tuple[list[Any], TreeSpec]:
    """Returns the leaves of a call's arguments and their structure."""
    return tree_flatten(dict(arguments))


@dataclass
class CallArguments:
    """One call of a module.

    Args:
        signature: Of its forward, without ``self``.
        leaves: The values in its arguments, in order: tensors, numbers, None, whatever it takes.
        spec: How they are packed.
        names: How each is called in messages: ``attn_mask``, ``sizes[0]``.
    """

    signature: inspect.Signature
    leaves: list[Any]
    spec: TreeSpec
    names: list[str]

    @classmethod
    def of(
        cls, signature: inspect.Signature, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> CallArguments:
        """Returns the arguments of a call, defaults included.

        Raises:
            TypeError: If the forward does not take them.
        """
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {
            name: dict(sorted(value.items())) if _is_rest(signature, name) else value
            for name, value in bound.arguments.items()
        }
        paths, _ = tree_flatten_with_path(arguments)
        names = [f"{getattr(path[0], 'key', '')}{keystr(path[1:])}" for path, _ in paths]
        leaves, spec = flattened(arguments)
        return cls(signature, leaves, spec, names)

    def call(self, function: Any, module: nn.Module, leaves: Sequence[Any]) -> Any:
        """Calls a forward with other leaves in the same places."""
        bound = inspect.BoundArguments(self.signature, tree_unflatten(leaves, self.spec))
        return function(module, *bound.args, **bound.kwargs)

    def first_store(self) -> str | None:
        """Returns the class of the first argument that a forward may write into, if there is one.

        A graph of the forward would keep what was written while it was traced, in place of what a
        later call writes.
        """
        found = (x for x in self.leaves if not isinstance(x, _PLAIN) and not callable(x))
        return next((type(x).__name__ for x in found), None)

    def is_tensor(self, index: int) -> bool:
        """Whether a leaf is a tensor."""
        return isinstance(self.leaves[index], Tensor)


def _is_rest(signature: inspect.Signature, name: str) -> bool:
    return signature.parameters[name].kind is inspect.Parameter.VAR_KEYWORD
