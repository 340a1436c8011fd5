"""Distinguishes dead layers from layers that merely have not run."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator

from torch import nn

# Code with one of these may reach a layer without naming it.
_GENERIC = frozenset(("children", "named_children", "modules", "named_modules", "_modules",
                      "getattr", "get_submodule", "__getattr__", "__dict__", "vars",
                      "parameters", "named_parameters", "get_parameter"))  # fmt: skip
_INHERITED = frozenset(("super", "__class__"))


class Mentions:
    """Names that occur in the code that a network's forwards can reach.

    A method that no reachable code names never runs: a subclass with a forward of its own leaves
    the old one, and the layers of that, behind.

    Args:
        model: The network.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self._codes = {type(m): _Code(type(m)) for m in model.modules()}
        self._own = {name: _own_names(module) for name, module in model.named_modules()}
        reached = set().union(*self._own.values())
        grows = True
        while grows:
            before = len(reached)
            for code in self._codes.values():
                reached |= code.extended(reached)
            grows = len(reached) > before

    def is_mentioned(self, caller: str, name: str) -> bool:
        """Whether reachable code of the modules around a layer, or their functions, names it.

        Args:
            caller: The module whose forward could call the layer.
            name: The layer, or a parameter, inside that module.
        """
        attribute = name[len(caller) :].lstrip(".").partition(".")[0]
        if attribute.isdigit():
            return True
        parts = caller.split(".") if caller else []
        for end in range(len(parts) + 1):
            around = ".".join(parts[:end])
            names = self._codes[type(self.model.get_submodule(around))].names | self._own[around]
            if attribute in names or names & _GENERIC:
                return True
        return False


class _Code:
    """The methods of a class that can run, and what they name."""

    def __init__(self, cls: type[nn.Module]) -> None:
        self.names: set[str] = set()
        self._seen: set[types.CodeType] = set()
        self._rest: list[tuple[str, bool, types.FunctionType]] = []
        known: set[str] = set()
        classes = cls.__mro__[: cls.__mro__.index(nn.Module)]
        self._classes = {base.__name__ for base in classes} | _INHERITED
        for base in classes:
            for key, value in vars(base).items():
                if key != "__init__":
                    self._rest += [(key, key in known, f) for f in _functions_in((value,))]
            known.update(vars(base))

    def extended(self, reached: set[str]) -> set[str]:
        """Adds the methods that are reached by now; returns the names of this class."""
        grows = True
        while grows:
            rest, self._rest = self._rest, []
            for key, is_hidden, function in rest:
                runs = key == "forward" or key.startswith("__") or key in reached | self.names
                if runs and (not is_hidden or self.names & self._classes):
                    self.names.update(_names(function, self._seen))
                else:
                    self._rest.append((key, is_hidden, function))
            grows = len(self._rest) < len(rest)
        return self.names


def _own_names(module: nn.Module) -> set[str]:
    """Returns what functions of an instance name: in its attributes, and its hooks."""
    members = [*vars(module).values(), *module._forward_hooks.values(),
               *module._forward_pre_hooks.values()]  # fmt: skip
    seen: set[types.CodeType] = set()
    return {name for function in _functions_in(members) for name in _names(function, seen)}


def _functions_in(members: Iterable[object]) -> Iterator[types.FunctionType]:
    for member in members:
        while member is not None:  # decorators keep what they wrap
            for inside in ("fget", "__func__", "func"):
                member = getattr(member, inside, None) or member
            if not isinstance(member, types.FunctionType):
                break
            yield member
            member = getattr(member, "__wrapped__", None)


def _names(function: types.FunctionType, seen: set[types.CodeType]) -> Iterator[str]:
    """Yields names and strings in a function and in the functions that it names."""
    stack = [(function.__code__, function.__globals__)]
    while stack:
        code, scope = stack.pop()
        if code in seen:
            continue
        seen.add(code)
        for item in (*code.co_names, *code.co_freevars):
            yield item
            for other in _called(item, code, scope):
                stack.append((other.__code__, other.__globals__))
        for constant in code.co_consts:
            if isinstance(constant, types.CodeType):
                stack.append((constant, scope))
            elif isinstance(constant, str):
                yield constant


def _called(
    item: str, code: types.CodeType, scope: dict[str, object]
) -> Iterator[types.FunctionType]:
    """Yields the functions that a global name stands for: itself, or what is used of a module."""
    found = scope.get(item)
    if isinstance(found, types.ModuleType) and found.__name__.partition(".")[0] != "torch":
        yield from _functions_in(getattr(found, name, None) for name in code.co_names)
    else:
        yield from _functions_in((found,))
