"""Functions attached to a network that reference the network itself.

``copy.deepcopy`` does not copy functions: a hook ``lambda m, i, o: self.seen.append(o)`` of a copy
still writes into the original, and a forward that was replaced by a function still runs the
original's layers. Bound methods and ``functools.partial`` are copied rightly.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from types import FunctionType
from typing import Any

from torch import nn

from amc_env.errors import UntraceableModelError

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def check_functions(model: nn.Module) -> None:
    """Checks that no function attached to a network refers to the network or its containers.

    Raises:
        UntraceableModelError: If one does, naming the module, the variable and the way out.
    """
    own = {id(module) for module in model.modules()}
    for module in model.modules():
        state = vars(module).items()
        own |= {id(v) for k, v in state if isinstance(v, list | dict | set) and _is_users(k)}
    for name, module in model.named_modules():
        for what, function in _functions(module):
            for variable, value in _held(function):
                if id(value) in own:
                    where = f" of {name!r}" if name else ""
                    raise UntraceableModelError(
                        f"Expected a network that can be copied, but {what}{where} is a function "
                        f"that holds on to the network by {variable!r}: a copy would still use "
                        f"the original; make it a method of the module, or functools.partial of "
                        f"one."
                    )


def _is_users(key: str) -> bool:
    """Whether an attribute is none of those that ``nn.Module`` itself keeps."""
    return key not in vars(nn.Module())


def _functions(module: nn.Module) -> Iterator[tuple[str, FunctionType]]:
    for key in _HOOKS:
        for hook in vars(module).get(key, {}).values():
            if isinstance(hook, FunctionType):
                yield f"a {key.strip('_').removesuffix('s').replace('_', ' ')}", hook
    for key, value in vars(module).items():
        if isinstance(value, FunctionType):
            yield f"the attribute {key!r}", value


def _held(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yields the variables and defaults that a function keeps."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield name, cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is not parameter.empty:
            yield parameter.name, parameter.default
