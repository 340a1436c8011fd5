"""Tells layers that no code can call from those that merely have not run."""

from __future__ import annotations

import types
from collections.abc import Iterator

from torch import nn

# Code with one of these may reach a layer without naming it.
_GENERIC = frozenset(("children", "named_children", "modules", "named_modules", "_modules",
                      "getattr", "get_submodule", "__getattr__", "__dict__", "vars",
                      "parameters", "named_parameters", "get_parameter"))  # fmt: skip


def is_mentioned(model: nn.Module, caller: str, name: str) -> bool:
    """Whether code of the modules around a layer, or functions that it calls, names the layer.

    Args:
        model: The network.
        caller: The module whose forward could call the layer.
        name: The layer, or a parameter, inside that module.
    """
    attribute = name[len(caller) :].lstrip(".").partition(".")[0]
    if attribute.isdigit():
        return True
    parts = caller.split(".") if caller else []
    around = [model.get_submodule(".".join(parts[:end])) for end in range(len(parts) + 1)]
    seen: set[types.CodeType] = set()
    for module in around:
        for function in _functions(module):
            names = set(_names(function, seen))
            if attribute in names or names & _GENERIC:
                return True
    return False


def _functions(module: nn.Module) -> Iterator[types.FunctionType]:
    """Yields the Python code of a module beside its constructor."""
    members = [*vars(module).values()]
    for cls in type(module).__mro__:
        if cls is nn.Module:
            break
        members += [value for key, value in vars(cls).items() if key != "__init__"]
    for member in members:
        member = getattr(member, "fget", None) or getattr(member, "__func__", member)
        if isinstance(member, types.FunctionType):
            yield member


def _names(function: types.FunctionType, seen: set[types.CodeType]) -> Iterator[str]:
    """Yields names and strings in a function and in the functions of its file that it names."""
    stack = [function.__code__]
    while stack:
        code = stack.pop()
        if code in seen:
            continue
        seen.add(code)
        for item in (*code.co_names, *code.co_freevars):
            yield item
            other = function.__globals__.get(item)
            if isinstance(other, types.FunctionType):
                stack.append(other.__code__)
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                stack.append(constant)
            elif isinstance(constant, str):
                yield constant
